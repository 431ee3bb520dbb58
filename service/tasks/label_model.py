"""A labeler as the tasks on text see it: labels, limits, and texts as ids."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from service.bundle.arrays import Ids
from service.bundle.labeler import LabelerBundle, LabelerManifest
from service.bundle.losses import LOSSES, lost_character
from service.bundle.manifest import Precision
from service.bundle.text import UNK_ID
from service.decoding.linear_chain import Chain
from service.decoding.normal_form import normal_form
from service.errors import InvalidRequest
from service.settings import Settings
from service.tasks.handles import ModelStates, Seal
from service.tasks.limits import at_most
from service.tasks.sides import SideReader, SideText
from service.tasks.unknown import Unknown, UnknownPolicy, unknown_text

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
    # Of a restorer: what it may put into a text and has never read, since training had lost it. By
    # code point as it is read instead (str.translate), and by character the label that it is.
    bare: Mapping[int, str]
    restored: Mapping[str, int]

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
        bare = _bare_characters(bundle) if manifest.labels.applied else {}
        return cls(
            manifest,
            SideReader.of(manifest.text, bundle.text, max_tokens),
            None if manifest.chain is None else Chain.of(manifest.chain),
            settings,
            max_tokens,
            seal,
            str.maketrans(bare),
            {name: i for i, name in enumerate(manifest.labels.names) if name in bare},
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
        ids = self._ids("".join(normal))
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
        elif self.bare:
            read = self._read_bare(text, policy)
        else:
            read = self.reader.read(text, policy, "text")
        at_most("text", len(read.ids), self.max_tokens, "tokens in a text")
        return read

    def _read_bare(self, text: str, policy: UnknownPolicy) -> SideText:
        """The same where some characters are read as others. Raises InvalidRequest."""
        rules = self.reader.rules.normalization
        text = normal_form(text, rules, "text")
        ids = self._ids(text)
        unknown = Unknown.of(ids)
        if policy == "error" and unknown.count:
            raise unknown_text("text", unknown)
        read = SideText(text, ids, unknown)
        while policy == "skip" and (read.ids == UNK_ID).any():
            text = normal_form(_without_unknown(read).text, rules, "text")
            read = SideText(text, self._ids(text), unknown)
        return read

    def _ids(self, text: str) -> Ids:
        """The ids of a normalized text of characters."""
        return self.reader.tokenizer.encode(text.translate(self.bare) if self.bare else text)

    def typed(self, text: str) -> list[tuple[int, int]]:
        """Places of a text that hold what a restorer would put there, and the ids of these labels.

        They stay as they are.
        """
        if not self.restored:
            return []
        return [(place, self.restored[x]) for place, x in enumerate(text) if x in self.restored]

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


def _bare_characters(bundle: LabelerBundle) -> dict[str, str]:
    """Labels that are outside the vocabulary, and the character of it that each was in training."""
    known = set(bundle.text.tokens)
    found: dict[str, str] = {}
    for name in bundle.manifest.labels.names:
        bare = [lost_character(name, loss) for loss in LOSSES if name and name not in known]
        for character in bare:
            if character in known:
                found.setdefault(name, character)
    return found


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
