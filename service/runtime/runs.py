"""Rows of different lengths, read in several runs of a graph: none pays for others' pads.

N rows. The graph must read a row over its own positions: pads after them change nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.bundle.arrays import Float32Array, Int32Array, Int64Array
from service.bundle.padding import padded_length
from service.bundle.text import PAD_ID

# Each position of a run costs the graph as much as this many rows (measured).
_RUN_ROWS = 8
# Up to this length each is told apart, and beyond it half as many per doubling.
_LENGTHS = 16


@dataclass(frozen=True, slots=True)
class Group:
    """Sources of like lengths."""

    rows: Int64Array
    positions: int  # that they take


def read_together(lengths: Int32Array) -> list[list[Group]]:
    """The groups to read in each run of a graph, longest first in every run.

    A run pays for its positions, however few its rows are, and each of its rows for the positions
    of the longest. Of all ways to cut the sorted lengths into runs, this is the cheapest, found by
    dynamic programming.
    """
    rounded = _sizes(lengths)
    if len(lengths) == 1:
        return [[Group(np.zeros(1, np.int64), int(rounded[0]))]]
    sizes, group_of, counts = np.unique(rounded, return_inverse=True, return_counts=True)
    last = len(sizes)
    rows = np.cumsum(counts)  # of the sizes up to each
    best = np.zeros(last + 1, np.int64)  # what the sizes up to each cost at least, …
    first = np.zeros(last + 1, np.int64)  # … and the shortest in the last of those runs
    for end in range(1, last + 1):
        shared = rows[end - 1] - rows[:end] + counts[:end]  # rows from each size to this one
        costs = best[:end] + int(sizes[end - 1]) * (_RUN_ROWS + shared)
        first[end] = costs.argmin()
        best[end] = costs[first[end]]
    groups = [Group(np.flatnonzero(group_of == i), size) for i, size in enumerate(sizes.tolist())]
    runs: list[list[Group]] = []
    while last:
        runs.append(groups[int(first[last]) : last][::-1])
        last = int(first[last])
    return runs


def _sizes(lengths: Int32Array) -> Int32Array:
    """The lengths; the longer ones rounded up."""
    steps = np.maximum(2 ** np.ceil(np.log2(lengths / _LENGTHS)), 1).astype(np.int32)
    return np.asarray(-(-lengths // steps) * steps)


def rows_of(run: Sequence[Group]) -> tuple[Int64Array, int]:
    """The rows that a run reads, in order, and their positions."""
    return np.concatenate([group.rows for group in run]), run[0].positions


def order_of(runs: Sequence[Sequence[Group]]) -> Int64Array:
    """Where each row's result lies among those of all the runs."""
    return np.argsort(np.concatenate([rows_of(run)[0] for run in runs]))


def padded(
    parts: Sequence[Float32Array], runs: Sequence[Sequence[Group]], axis: int, positions: int
) -> Float32Array:
    """A tensor of all the runs, `positions` long on its `axis`, with zeros for pads."""
    count = sum(map(len, parts))
    shape = (count, *parts[0].shape[1:axis], positions, *parts[0].shape[axis + 1 :])
    whole = np.empty(shape, np.float32)
    by_position = np.moveaxis(whole, axis, 1)
    for part, groups in zip(parts, runs, strict=True):
        found = np.moveaxis(part, axis, 1)
        start = 0
        for group in groups:
            end = start + len(group.rows)
            by_position[group.rows, : group.positions] = found[start:end, : group.positions]
            by_position[group.rows, group.positions :] = 0.0
            start = end
    return whole


def pad_sources(sources: list[npt.NDArray[np.generic]]) -> Int64Array:
    """Sources of one padded length, eos included, as [N, S]."""
    padded = np.full((len(sources), padded_length(len(sources[0]))), PAD_ID, np.int64)
    for row, source in zip(padded, sources, strict=True):
        row[: len(source)] = source
    return padded
