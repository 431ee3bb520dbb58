"""Batches of pairs: shuffled each epoch, of similar lengths, resumable from two integers.

B batch, S source positions, T target positions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from service.bundle.text import BOS_ID, EOS_ID, PAD_ID
from training.data.pairs import Ids, PairSplit

IdArray = npt.NDArray[np.int64]

# Batches are cut from this many batches' worth of shuffled pairs, sorted by length.
_POOL_BATCHES = 50


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
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0
        self._index = 0  # of the next batch in the epoch
        self._batches = self._shuffled()

    def next(self) -> PairBatch:
        """The next batch; the last one of a pool may be smaller."""
        if self._index == len(self._batches):
            self._epoch, self._index = self._epoch + 1, 0
            self._batches = self._shuffled()
        self._index += 1
        return pair_batch(self._split, self._batches[self._index - 1].tolist())

    def state(self) -> dict[str, Any]:
        """What `restore` needs to continue from here; JSON."""
        return {"epoch": self._epoch, "index": self._index}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken."""
        self._epoch, self._index = state["epoch"], state["index"]
        self._batches = self._shuffled()

    def _shuffled(self) -> list[IdArray]:
        """The epoch's batches, which depend on the seed and the epoch alone."""
        if self._drawn is not None:
            self._split = self._drawn(self._epoch)
        rng = np.random.default_rng((self._seed, self._epoch))
        order = rng.permutation(len(self._split))
        batches: list[IdArray] = []
        for pool in _cut(order, _POOL_BATCHES * self._batch_size):
            # By source, then by target: a batch is padded to the longest of each.
            lengths = [(len(self._split.sources[i]), len(self._split.targets[i])) for i in pool]
            ranked = sorted(range(len(pool)), key=lengths.__getitem__)
            batches += _cut(pool[ranked], self._batch_size)
        return [batches[i] for i in rng.permutation(len(batches))]


def _cut(values: IdArray, size: int) -> list[IdArray]:
    return [values[i : i + size] for i in range(0, len(values), size)]
