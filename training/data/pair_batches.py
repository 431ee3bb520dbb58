"""Batches of pairs.

B batch, S source positions, T target positions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from service.bundle.text import BOS_ID, EOS_ID, PAD_ID
from training.data.pairs import Ids, PairSplit
from training.data.shuffled import IdArray, ShuffledBatches


@dataclass(frozen=True, slots=True)
class PairBatch:
    """Padded pairs: a source ends with eos, `tokens` begin with bos, `targets` end with eos."""

    sources: IdArray  # [B, S]
    lengths: IdArray  # [B] eos counted
    tokens: IdArray  # [B, T]
    targets: IdArray  # [B, T] pads are not counted

    @property
    def predicted(self) -> int:
        """Tokens that are counted."""
        return int((self.targets != PAD_ID).sum())


def pad_sources(sources: Sequence[Ids]) -> tuple[IdArray, IdArray]:
    """Sources followed by eos, [B, S], and their lengths, [B]."""
    lengths = np.array([len(source) + 1 for source in sources], np.int64)
    padded = np.full((len(sources), int(lengths.max())), PAD_ID, np.int64)
    for row, source in zip(padded, sources, strict=True):
        row[: len(source)] = source
        row[len(source)] = EOS_ID
    return padded, lengths


def pair_batch(split: PairSplit, indices: Sequence[int]) -> PairBatch:
    """The pairs at these indices."""
    sources, lengths = pad_sources([split.sources[i] for i in indices])
    targets, _ = pad_sources([split.targets[i] for i in indices])
    tokens = np.full_like(targets, PAD_ID)
    tokens[:, 0] = BOS_ID
    tokens[:, 1:] = targets[:, :-1]
    tokens[tokens == EOS_ID] = PAD_ID  # eos is an input only as padding, which is not counted
    return PairBatch(sources, lengths, tokens, targets)


class PairBatches:
    """An endless walk over a split: every pair once in each epoch, in a new order each time.

    With `drawn`, each epoch has pairs of its own.
    """

    def __init__(
        self,
        split: PairSplit,
        batch_size: int,
        *,
        seed: int,
        drawn: Callable[[int], PairSplit] | None = None,
    ) -> None:
        self._split = split
        self._drawn = drawn
        self._walk = ShuffledBatches(self._lengths, batch_size, seed=seed)

    def next(self) -> PairBatch:
        """The next batch; the last one of a pool may be smaller."""
        indices = self._walk.next()  # first: a new epoch may have pairs of its own
        return pair_batch(self._split, indices)

    def state(self) -> dict[str, Any]:
        """What `restore` needs to continue from here; JSON."""
        return self._walk.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken."""
        self._walk.restore(state)

    def _lengths(self, epoch: int) -> list[tuple[int, int]]:
        """By source, then by target: a batch is padded to the longest of each."""
        if self._drawn is not None:
            self._split = self._drawn(epoch)
        lengths = map(len, self._split.sources), map(len, self._split.targets)
        return list(zip(*lengths, strict=True))
