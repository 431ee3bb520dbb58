"""A language model as the tasks on text see it: tokens, limits, and texts as ids."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from service.bundle.arrays import Ids
from service.bundle.language_model import LanguageModelBundle, LanguageModelManifest
from service.bundle.manifest import Precision
from service.bundle.text import PAD_ID, UNK_ID, Normalization, Vocabulary
from service.decoding.normal_form import normal_form
from service.decoding.rows import Continuation, ReadRow
from service.errors import InvalidRequest
from service.settings import Settings
from service.tasks.handles import ModelStates, Seal
from service.tasks.unknown import Unknown, UnknownPolicy, unknown_text
from service.tasks.values import Prompt


@dataclass(frozen=True, slots=True)
class TextModel:
    """A language model without its workers."""

    manifest: LanguageModelManifest
    vocab: Vocabulary
    id_of_token: Mapping[str, int]
    settings: Settings
    seals: Mapping[bool, Seal]  # by whether the model adapts; one that cannot has only False

    @classmethod
    def of(
        cls,
        bundle: LanguageModelBundle,
        precision: Precision,
        settings: Settings,
        *,
        adapts: bool = False,
    ) -> Self:
        """From a bundle; `adapts` says whether it is served so that it can adapt."""
        manifest = bundle.manifest
        key = settings.signing_key().get_secret_value().encode()
        states = language_model_states(manifest)
        return cls(
            manifest,
            bundle.vocab,
            {token: i for i, token in enumerate(bundle.vocab.tokens)},
            settings,
            {
                mode: Seal(key, states, precision, max_age_s=settings.state_max_age_s, adapt=mode)
                for mode in ([False, True] if adapts else [False])
            },
        )

    def seal(self, *, adapt: bool) -> Seal:
        """The seal of the states. Raises InvalidRequest where the model cannot adapt."""
        if adapt not in self.seals:
            raise InvalidRequest.of_option(
                "adapt",
                "this model cannot adapt; leave it out (networks that are exported with a section "
                "[adapt] in their training configuration can)",
            )
        return self.seals[adapt]

    @property
    def tokens(self) -> tuple[str, ...]:
        """Printed tokens; the index is the id."""
        return self.vocab.tokens

    @property
    def normalization(self) -> Normalization:
        """How every text is normalized first."""
        return self.manifest.normalization

    @property
    def max_tokens(self) -> int:
        """Most tokens that one choice may generate: the service's limit or the bundle's."""
        return min(self.settings.max_tokens, self.manifest.limits.max_tokens)

    def encode(self, text: str, option: str = "") -> Ids:
        """The ids of a text's normalized characters. Raises InvalidRequest."""
        return self.vocab.encode(normal_form(text, self.normalization, option))

    def read(self, text: str, policy: UnknownPolicy, option: str) -> tuple[Ids, Unknown]:
        """The ids after the policy on unknown characters, and those characters.

        Raises InvalidRequest.
        """
        ids = self.encode(text, option)
        unknown = Unknown.of(ids)
        if policy == "error" and unknown.count:
            raise unknown_text(option, unknown)
        if policy == "skip":
            ids = ids[ids != UNK_ID]
        return ids, unknown

    def readable(self, text: str, policy: UnknownPolicy) -> str:
        """The normalized text without skipped characters: one character for each id of `read`."""
        text = normal_form(text, self.normalization)
        if policy != "skip":
            return text
        kept = self.vocab.encode(text) != UNK_ID
        return "".join(itertools.compress(text, kept.tolist()))

    def read_prompt(self, prompt: Prompt, policy: UnknownPolicy) -> tuple[Ids, Unknown]:
        """The same for a prompt; one given as ids is taken as it is."""
        if isinstance(prompt, str):
            return self.read(prompt, policy, "prompt")
        return np.array(prompt, np.uint16), Unknown()


def read_after(
    after: Continuation | None,
    tokens: Ids,
    counted: Ids,
    detail_top: int | None,
    *,
    goes_on: bool = True,
) -> ReadRow:
    """The read of `tokens`, from the beginning or after a text.

    `counted` has what is counted of them, pad elsewhere, and one more where the last is not read.
    """
    targets = np.full(len(tokens), PAD_ID, np.uint16)
    targets[: len(counted) - 1] = counted[1 : len(tokens) + 1]
    first = int(counted[0]) if after is not None and len(counted) else PAD_ID
    return ReadRow(
        tokens,
        targets,
        detail_top=detail_top,
        wants_continuation=goes_on,
        after=after,
        first=first,
    )


def language_model_states(manifest: LanguageModelManifest) -> ModelStates:
    """The states of a language model."""
    return ModelStates(
        model=manifest.name,
        graphs=manifest.graphs,
        states=manifest.states,
        outputs=manifest.vocab.size,
        meaning=[manifest.vocab.sha256, manifest.normalization.model_dump_json()],
        learned=None if manifest.adapt is None else manifest.adapt.states,
    )
