"""A labeler as the tasks on text see it: labels, limits, and texts as ids."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from service.bundle.labeler import LabelerBundle, LabelerManifest
from service.bundle.manifest import Precision
from service.bundle.text import UNK_ID
from service.decoding.linear_chain import Chain
from service.decoding.normal_form import normal_form
from service.errors import InvalidRequest
from service.settings import Settings
from service.tasks.handles import ModelStates, Seal
from service.tasks.limits import at_most
from service.tasks.sides import SideReader, SideText
from service.tasks.unknown import Unknown, UnknownPolicy

# Places times labels of one text: as log-probabilities in float32, 16 MB.
_MAX_PLACE_LABELS = 4 * 2**20
_NO_UNKNOWN = Unknown()


@dataclass(frozen=True, slots=True)
class LabelModel:
    """A labeler without its workers."""

    manifest: LabelerManifest
    reader: SideReader
    chain: Chain | None
    settings: Settings
    max_tokens: int  # of a text
    seal: Seal | None  # of the states; None if a text cannot be read in parts

    @classmethod
    def of(cls, bundle: LabelerBundle, precision: Precision, settings: Settings) -> Self:
        """From a bundle."""
        manifest = bundle.manifest
        max_tokens = manifest.limits.max_tokens
        if manifest.states:
            max_tokens = settings.max_queue_tokens  # it is read in chunks
        elif manifest.labels.scope == "character":
            max_tokens = min(max_tokens, _MAX_PLACE_LABELS // len(manifest.labels.names))
        seal = None
        if reads_in_parts(manifest):
            key = settings.signing_key().get_secret_value().encode()
            states = labeler_states(manifest)
            seal = Seal(key, states, precision, max_age_s=settings.state_max_age_s)
        return cls(
            manifest,
            SideReader.of(manifest.text, bundle.text, max_tokens),
            None if manifest.chain is None else Chain.of(manifest.chain),
            settings,
            max_tokens,
            seal,
        )

    @property
    def label_names(self) -> Sequence[str]:
        """The labels; the index is the id."""
        return self.manifest.labels.names

    def check_texts(self, texts: Sequence[str]) -> None:
        """Raise InvalidRequest for too many texts, or texts with too many characters.

        This check comes first because it costs next to nothing.
        """
        settings = self.settings
        at_most("text", len(texts), settings.max_inputs, "texts")
        at_most("text", sum(map(len, texts)), settings.max_queue_tokens, "characters")
        longest = max(map(len, texts), default=0)
        at_most("text", longest, self.reader.max_chars, "characters in a text")

    def read(self, texts: Sequence[str], policy: UnknownPolicy) -> list[SideText]:
        """Texts, normalized, with their ids. Raises InvalidRequest.

        If tokens are characters, those of all texts are looked up at once: five times as fast.
        """
        if self.manifest.text.tokenization != "character":
            return [self._read(text, policy) for text in texts]
        rules = self.reader.rules.normalization
        normal = [normal_form(text, rules, "text") for text in texts]
        ids = self.reader.tokenizer.encode("".join(normal))
        has_unknown = bool((ids == UNK_ID).any())
        if has_unknown and policy != "unk":
            return [self._read(text, policy) for text in texts]
        at_most("text", max(map(len, normal), default=0), self.max_tokens, "tokens in a text")
        ends = list(itertools.accumulate(map(len, normal)))
        parts = [ids[end - len(text) : end] for text, end in zip(normal, ends, strict=True)]
        return [
            SideText(text, part, Unknown.of(part) if has_unknown else _NO_UNKNOWN)
            for text, part in zip(normal, parts, strict=True)
        ]

    def _read(self, text: str, policy: UnknownPolicy) -> SideText:
        """A text, normalized, with its ids. Raises InvalidRequest."""
        if policy == "skip" and self.seal is not None:
            # What is left is not normalized again: that would make parts differ from the whole.
            read = _without_unknown(self.reader.read(text, "unk", "text"))
        else:
            read = self.reader.read(text, policy, "text")
        at_most("text", len(read.ids), self.max_tokens, "tokens in a text")
        return read

    def seal_of_parts(self, option: str) -> Seal:
        """The seal of the states. Raises InvalidRequest if there are none."""
        if self.seal is None:
            raise InvalidRequest.of_option(
                option,
                "this model cannot continue from a state; leave it out. Only models that read "
                'forward, character by character, can (`direction = "forward"` and `strip = false` '
                "in the training configuration)",
            )
        return self.seal


def _without_unknown(text: SideText) -> SideText:
    """A text of characters without those that are outside the vocabulary."""
    kept = text.ids != UNK_ID
    characters = itertools.compress(text.text, kept.tolist())
    return SideText("".join(characters), text.ids[kept], text.unknown)


def reads_in_parts(manifest: LabelerManifest) -> bool:
    """Whether reading a text in parts gives what reading it as a whole gives.

    It does not if tokens may reach across the ends of parts, or if blanks at the ends are dropped.
    """
    text = manifest.text
    is_of_characters = text.tokenization == "character"
    return bool(manifest.states) and is_of_characters and not text.normalization.strip


def labeler_states(manifest: LabelerManifest) -> ModelStates:
    """The states of a labeler that reads forward."""
    text, labels = manifest.text, manifest.labels.model_dump_json()
    return ModelStates(
        model=manifest.name,
        graphs=manifest.graphs,
        states=manifest.states,
        outputs=len(manifest.labels.names),
        meaning=[text.vocab.sha256, text.normalization.model_dump_json(), labels],
    )
