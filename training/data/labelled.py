"""Labelled texts, prepared: the tokenizer, the labels and the splits.

n tokens of a text, V vocabulary, L labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from service.bundle.labeler import Labels
from service.bundle.tokenization import Tokenizer
from training.errors import ConfigError

Ids: TypeAlias = npt.NDArray[np.uint16]
LabelIds: TypeAlias = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class LabelledSplit:
    """The texts of one split with their labels."""

    name: str
    texts: Sequence[str]  # normalized
    tokens: Sequence[Ids]  # [n] of each text, without bos and eos
    labels: Sequence[LabelIds]  # of each text: [1], [any number], or [n] one for each character

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledCorpus:
    """Prepared texts, their labels and splits."""

    tokenizer: Tokenizer
    labels: Labels
    allowed: npt.NDArray[np.bool_] | None  # [V, L] the labels that a token may have; None: all
    sha256: str  # over the input files, in order
    train: LabelledSplit
    valid: LabelledSplit
    tests: Sequence[LabelledSplit]  # `test`, where there is one, and the extra tests
    counts: dict[str, int]  # texts read, kept and dropped, for people

    @property
    def held_out(self) -> Sequence[LabelledSplit]:
        """The splits that figures are reported on."""
        return self.tests or [self.valid]

    def chosen(self, name: str | None) -> Sequence[LabelledSplit]:
        """The split of that name (`--split`), or all that are held out. Raises ConfigError."""
        if not name:
            return self.held_out
        known = {split.name: split for split in (self.train, self.valid, *self.tests)}
        if name not in known:
            raise ConfigError(f"--split: there are {', '.join(known)}")
        return [known[name]]
