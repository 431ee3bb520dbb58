"""Labels of characters from the characters around them: counts, smoothed from wide to narrow.

The distribution after a window of radius r is (n(window, y) + T · p(y)) / (n(window) + T), where p
is that of the next narrower window and T is the number of labels seen with this one (Witten and
Bell 1991). A window of a radius reaches past the ends of a text.

N characters, L labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from training.data.labelled import Ids, LabelledSplit

_RADII = (0, 1, 2, 3)
_MOST_CHARS = 5_000_000  # counted; a table takes up to 60 bytes for each
_BLOCK = 2_000_000  # numbers of the distributions that are computed at once

Floats: TypeAlias = npt.NDArray[np.float64]
_Hashes: TypeAlias = npt.NDArray[np.uint64]
_Ints: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Table:
    """The labels of each window of one radius, in order of the windows' hashes."""

    windows: _Hashes  # sorted; a window is there once for each of its labels
    labels: _Ints
    counts: Floats


class LabelWindows:
    """Counts of the training texts, or of a part of them where they are many."""

    def __init__(self, train: LabelledSplit, num_labels: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(train))
        chars = np.cumsum([len(train.tokens[i]) for i in order])
        kept = order[: max(1, int(np.searchsorted(chars, _MOST_CHARS)))]
        self.texts = len(kept)  # that are counted
        # Sums of products with random odd factors: two windows hash alike once in 2^64.
        self._factors = rng.integers(0, 2**63, 2 * _RADII[-1] + 1, np.uint64) * 2 + 1
        labels = np.concatenate([train.labels[i] for i in kept]).astype(np.int64)
        hashes = self._hashes([train.tokens[i] for i in kept])
        self._tables = [_table(windows, labels) for windows in hashes]
        self.counts = np.bincount(labels, minlength=num_labels) + 1.0  # [L] none is impossible

    def logprobs(self, tokens: Sequence[Ids]) -> list[Floats]:
        """Log-probabilities [n, L] of the characters of each text."""
        found: list[Floats] = []
        most = max(1, _BLOCK // len(self.counts))
        start = 0
        ends = np.cumsum([len(x) for x in tokens])
        while start < len(tokens):
            before = int(ends[start - 1]) if start else 0
            end = max(start + 1, int(np.searchsorted(ends, before + most)))
            lengths = [len(x) for x in tokens[start:end]]
            block = np.log(self._probabilities(tokens[start:end]))
            found += np.split(block, np.cumsum(lengths)[:-1])
            start = end
        return found

    def _probabilities(self, tokens: Sequence[Ids]) -> Floats:
        """Of all characters, [N, L]."""
        hashes = self._hashes(tokens)
        lower = np.tile(self.counts / self.counts.sum(), (len(hashes[0]), 1))
        for windows, table in zip(hashes, self._tables, strict=True):
            first = np.searchsorted(table.windows, windows, "left")
            kinds = np.searchsorted(table.windows, windows, "right") - first  # [N] T
            rows = np.repeat(np.arange(len(windows)), kinds)
            entries = np.arange(len(rows)) - np.repeat(np.cumsum(kinds) - kinds, kinds)
            entries += np.repeat(first, kinds)
            seen = np.bincount(rows, table.counts[entries], minlength=len(windows))
            total = np.maximum(seen + kinds, 1.0)  # of windows that were never seen
            lower *= np.where(kinds, kinds / total, 1.0)[:, None]
            lower[rows, table.labels[entries]] += table.counts[entries] / total[rows]
        return lower

    def _hashes(self, tokens: Sequence[Ids]) -> list[_Hashes]:
        """The hash [N] of each character's window, for each radius."""
        reach = _RADII[-1]
        pad = np.zeros(reach, np.uint64)
        padded = [pad]
        for ids in tokens:
            padded += [ids.astype(np.uint64), pad]
        line = np.concatenate(padded)
        lengths = np.array([len(ids) for ids in tokens])
        places = np.arange(lengths.sum()) + np.repeat(
            reach * np.arange(1, len(tokens) + 1), lengths
        )
        found, total = [], np.zeros(len(places), np.uint64)
        for radius in _RADII:
            for side in sorted({-radius, radius}):
                total = total + line[places + side] * self._factors[side + reach]
            found.append(total)
        return found


def _table(windows: _Hashes, labels: _Ints) -> _Table:
    order = np.lexsort((labels, windows))
    windows, labels = windows[order], labels[order]
    new = np.ones(len(order), np.bool_)
    new[1:] = (windows[1:] != windows[:-1]) | (labels[1:] != labels[:-1])
    starts = np.flatnonzero(new)
    counts = np.diff(np.append(starts, len(order))).astype(np.float64)
    return _Table(windows[starts], labels[starts], counts)
