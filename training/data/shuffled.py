"""An endless walk over texts in batches of similar lengths, resumable from two integers."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from service.bundle.text import PAD_ID

IdArray: TypeAlias = npt.NDArray[np.int64]
Lengths: TypeAlias = Sequence[int] | Sequence[tuple[int, int]]

# Batches are cut from this many batches' worth of shuffled texts, sorted by length.
_POOL_BATCHES = 50


class ShuffledBatches:
    """Indices of batches: every text once in each epoch, in a new order each time.

    `lengths` gives what the texts of an epoch are sorted by within a pool; a batch of similar
    lengths has little padding.
    """

    def __init__(self, lengths: Callable[[int], Lengths], batch_size: int, *, seed: int) -> None:
        self._lengths = lengths
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0
        self._index = 0  # of the next batch in the epoch
        self._batches = self._shuffled()

    def next(self) -> list[int]:
        """The next batch; the last one of a pool may be smaller."""
        if self._index == len(self._batches):
            self._epoch, self._index = self._epoch + 1, 0
            self._batches = self._shuffled()
        self._index += 1
        indices: list[int] = self._batches[self._index - 1].tolist()
        return indices

    def state(self) -> dict[str, Any]:
        """What `restore` needs to continue from here; JSON."""
        return {"epoch": self._epoch, "index": self._index}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken."""
        self._epoch, self._index = state["epoch"], state["index"]
        self._batches = self._shuffled()

    def _shuffled(self) -> list[IdArray]:
        """The epoch's batches, which depend on the seed and the epoch alone."""
        lengths = self._lengths(self._epoch)
        rng = np.random.default_rng((self._seed, self._epoch))
        order = rng.permutation(len(lengths))
        batches: list[IdArray] = []
        for pool in _cut(order, _POOL_BATCHES * self._batch_size):
            found = [lengths[i] for i in pool]
            ranked = sorted(range(len(pool)), key=found.__getitem__)
            batches += _cut(pool[ranked], self._batch_size)
        return [batches[i] for i in rng.permutation(len(batches))]


def padded(
    rows: Sequence[Sequence[int] | npt.NDArray[np.integer]], filler: int = PAD_ID
) -> IdArray:
    """Rows of different lengths as one array, filled up at their ends."""
    found = np.full((len(rows), max(map(len, rows))), filler, np.int64)
    for place, row in zip(found, rows, strict=True):
        place[: len(row)] = row
    return found


def _cut(values: IdArray, size: int) -> list[IdArray]:
    return [values[i : i + size] for i in range(0, len(values), size)]
