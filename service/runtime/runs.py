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

# Rows whose lengths round up to the same multiple of this are always read together.
_READ_STEP = 4
# Each position of a run costs the graph as much as this many rows (measured).
_RUN_ROWS = 5


@dataclass(frozen=True, slots=True)
class Group:
    """Sources of like lengths."""

    rows: Int64Array
    positions: int  # that they take


def read_together(lengths: Int32Array) -> list[list[Group]]:
    """The groups to read in each run of a graph, longest first in every run.

    A run pays for its positions, however few its rows are. So shorter sources get a run of their
    own where that saves more than it costs.
    """
    runs: list[list[Group]] = []
    sizes = -(-lengths // _READ_STEP) * _READ_STEP
    for size in np.unique(sizes)[::-1].tolist():
        group = Group(np.flatnonzero(sizes == size), size)
        spared = len(group.rows) * (runs[-1][0].positions - size) if runs else 0
        if runs and spared < _RUN_ROWS * size:
            runs[-1].append(group)
        else:
            runs.append([group])
    return runs


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
    whole = np.zeros(
        (count, *parts[0].shape[1:axis], positions, *parts[0].shape[axis + 1 :]), np.float32
    )
    for part, groups in zip(parts, runs, strict=True):
        start = 0
        for group in groups:
            own = (slice(None),) * (axis - 1) + (slice(group.positions),)
            whole[(group.rows, *own)] = part[(slice(start, start + len(group.rows)), *own)]
            start += len(group.rows)
    return whole


def pad_sources(sources: list[npt.NDArray[np.generic]]) -> Int64Array:
    """Sources of one padded length, eos included, as [N, S]."""
    padded = np.full((len(sources), padded_length(len(sources[0]))), PAD_ID, np.int64)
    for row, source in zip(padded, sources, strict=True):
        row[: len(source)] = source
    return padded
