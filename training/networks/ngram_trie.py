"""An interpolated n-gram model as one trie whose rows share an array of slots.

V vocabulary, K the longest history (order - 1), G n-grams, H histories, N nodes, S slots, P runs of
a row.

A node is a history; its children are the tokens that have a probability of their own after it, or
are histories themselves. Rows are displaced into one array (Aoe, "An efficient digital search
algorithm by using a double-array structure", IEEE Transactions on Software Engineering 15, 1989):
the child of a node by a token, if there is one, is at the node's base plus the token's column, and
it is the node's own if the slot's color is the node's.

Three things make a row cheap to read. Bases are multiples of a run, so that a row is a few whole
runs. Columns are a permutation of the tokens that fills every place of a run evenly. And nodes
whose rows overlap differ in color, so that a color fits a byte.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

RUN = 8  # slots
NOWHERE = 0  # the node of a history that is not in the trie
# The filled share of all slots; the more are free, the fewer tries a row needs.
_FILL = 0.97
_TRIES = 400
_GROWTH = 1.1
# Node ids are carried as float32, which has whole numbers up to here.
_MAX_NODES = 1 << 24


@dataclass(frozen=True, slots=True)
class Level:
    """The n-grams of one length above 1, and what follows their histories."""

    histories: npt.NDArray[np.integer[Any]]  # [G] index of the first tokens in the level below
    tokens: npt.NDArray[np.integer[Any]]  # [G] last token
    mass: Floats  # [G] what the n-gram adds to the lower order's probability
    gamma: Floats  # [H] weight of the lower order, by the index of a history


@dataclass(frozen=True, slots=True)
class Trie:
    """The rows in place. Node 0 is `NOWHERE`, the last is the root: the empty history."""

    order: int
    grams: int  # of every length, those without a mass of their own included
    columns: Ints  # [V] place of each token in a row
    row_runs: int  # P
    check: Ints  # [S] color of the row that a slot belongs to; 0: free
    mass: Floats  # [S]
    child: Ints  # [S] the node whose history ends here; NOWHERE if nothing follows it
    base: Ints  # [N] first run of the row
    shared: int  # the most rows that begin at one run
    color: Ints  # [N] 1 + shared · (base mod P) + rank among the nodes of the same base
    gamma: Floats  # [N] weight of the lower order after the history

    @property
    def root(self) -> int:
        """The node of the empty history."""
        return len(self.base) - 1


def build(unigram: Floats, levels: Sequence[Level]) -> Trie:
    """A model of order `len(levels) + 1`, at least 2, over the probabilities `unigram` [V].

    p(w | h) = mass(h w) + gamma(h) p(w | h without its oldest token), and `unigram` at the end.
    N-grams without a mass that lead to none either are left out. Raises ValueError for a trie of
    more nodes than float32 can count.
    """
    parents, tokens, mass, gamma, leads = _flatten(unigram, levels)
    nodes = 1 + int(np.count_nonzero(leads))  # the root, and every n-gram that leads further
    if nodes >= _MAX_NODES:
        raise ValueError(
            f"an n-gram model of {nodes} histories is too large: fewer than {_MAX_NODES} are "
            "allowed. Lower its order, or prune it"
        )
    columns = _columns(tokens, len(unigram))
    rows = _Rows(parents, columns[tokens], -(-len(unigram) // RUN))
    bases = rows.place()  # [nodes] in the order of `parents`: the root first
    runs = rows.runs
    slots = bases[parents] * RUN + columns[tokens]
    # A node's id is its rank among the slots of n-grams that lead further; the root comes last.
    leading = slots[leads]
    ids = np.empty(nodes, np.int64)
    ids[0] = nodes
    ids[1:][np.argsort(leading)] = np.arange(1, nodes)
    child = np.zeros(runs * RUN, np.int64)
    child[leading] = ids[1:]

    def by_id(values: npt.NDArray[Any], nowhere: float) -> npt.NDArray[Any]:
        found = np.full(nodes + 1, nowhere, values.dtype)
        found[ids] = values
        return found

    base = by_id(bases, 0)
    shared, color = _colors(base, rows.row_runs)
    check, masses = np.zeros(runs * RUN, np.int64), np.zeros(runs * RUN)
    check[slots], masses[slots] = color[ids[parents]], mass
    return Trie(
        order=len(levels) + 1,
        grams=len(tokens),
        columns=columns,
        row_runs=rows.row_runs,
        check=check,
        mass=masses,
        child=child,
        base=base,
        shared=shared,
        color=color,
        gamma=by_id(gamma, 1.0),
    )


def _flatten(
    unigram: Floats, levels: Sequence[Level]
) -> tuple[Ints, Ints, Floats, Floats, npt.NDArray[np.bool_]]:
    """The n-grams to keep: [G] node of the history, token, mass; [N] gamma; [G] whether it leads.

    The root is node 0; an n-gram that leads further has the next free number.
    """
    roots = np.zeros(len(unigram), np.int64)
    every = [Level(roots, np.arange(len(unigram)), unigram, np.zeros(1)), *levels]
    # From the longest to the shortest: an n-gram is kept for its mass or for a longer one.
    leads = [np.zeros(len(level.tokens), np.bool_) for level in every]
    kept: list[npt.NDArray[np.bool_]] = [level.mass > 0 for level in every]
    for i in range(len(every) - 1, 0, -1):
        leads[i - 1][every[i].histories[kept[i]]] = True
        kept[i - 1] |= leads[i - 1]
    parents, gamma = [], [np.zeros(1)]
    below, nodes = np.zeros(1, np.int64), 1  # [G] node of each n-gram of the level below
    for i, level in enumerate(every):
        parents.append(below[level.histories[kept[i]]])
        below = nodes - 1 + np.cumsum(leads[i])
        nodes += int(np.count_nonzero(leads[i]))
        if i + 1 < len(every):
            gamma.append(every[i + 1].gamma[: len(leads[i])][leads[i]])
    return (
        np.concatenate(parents),
        np.concatenate([x.tokens[k] for x, k in zip(every, kept, strict=True)]).astype(np.int64),
        np.concatenate([x.mass[k] for x, k in zip(every, kept, strict=True)]),
        np.concatenate(gamma),
        np.concatenate([x[k] for x, k in zip(leads, kept, strict=True)]),
    )


def _columns(tokens: Ints, vocab_size: int) -> Ints:
    """[V] columns that spread the n-grams evenly over the places of a run."""
    counts = np.bincount(tokens, minlength=vocab_size)
    row_runs = -(-vocab_size // RUN)
    columns = np.empty(vocab_size, np.int64)
    load, used = np.zeros(RUN), np.zeros(RUN, np.int64)
    for token in np.argsort(-counts, kind="stable"):
        place = int(np.argmin(np.where(used < row_runs, load, np.inf)))
        columns[token] = used[place] * RUN + place
        load[place] += counts[token]
        used[place] += 1
    return columns


def _colors(base: Ints, row_runs: int) -> tuple[int, Ints]:
    """How many rows share a base at most, and [N] colors that differ wherever rows overlap.

    Colors begin at 1; the last one belongs to `NOWHERE` and to no slot.
    """
    base = base[1:]
    order = np.argsort(base, kind="stable")
    ordered = base[order]
    rank = np.empty(len(base), np.int64)
    rank[order] = np.arange(len(base)) - np.searchsorted(ordered, ordered)
    shared = 1 + int(rank.max())
    colors = 1 + (base % row_runs) * shared + rank
    return shared, np.append(1 + row_runs * shared, colors)


class _Rows:
    """Rows that look for a place: many at once, at random, the fullest first.

    A row that fits nowhere it tries waits for the next round. Rows of one n-gram come last, and
    fill the free slots.
    """

    def __init__(self, parents: Ints, columns: Ints, row_runs: int) -> None:
        order = np.argsort(parents, kind="stable")
        self.columns = columns[order]  # [G] row after row
        self.row_runs = row_runs
        self.sizes = np.bincount(parents)  # [N]
        self.first = np.cumsum(self.sizes) - self.sizes  # [N]
        places = int(np.bincount(columns % RUN, minlength=RUN).max())
        needed = max(places, int(len(columns) / RUN / _FILL))
        # A row of one n-gram may begin up to P - 1 runs before its slot.
        self.runs = needed + 2 * row_runs
        self.taken = np.zeros(self.runs * RUN, np.bool_)
        self.bases = np.zeros(len(self.sizes), np.int64)
        self._random = np.random.default_rng(0)

    def place(self) -> Ints:
        """[N] first run of every row."""
        for rows in self._by_size():
            waiting = rows
            for tried in range(1, 1 << 20):
                waiting = self._try(waiting)
                if not len(waiting):
                    break
                if tried % _TRIES == 0:
                    self._grow(int(self.runs * _GROWTH) + 1)
        self._fill()
        return self.bases

    def _by_size(self) -> Iterator[Ints]:
        """The rows of several n-grams: those of about the same size together."""
        sizes = self.sizes
        order = np.argsort(-sizes, kind="stable")
        bounds = np.flatnonzero(np.diff(np.log2(sizes[order]) * 4 // 1)) + 1
        for rows in np.split(order, bounds):
            if sizes[rows[0]] > 1:
                yield rows

    def _try(self, rows: Ints) -> Ints:
        """Try one random place for each of the rows; returns the rows that still have none."""
        bases = self._random.integers(0, self.runs - self.row_runs + 1, len(rows))
        sizes = self.sizes[rows]
        starts = np.cumsum(sizes) - sizes
        which = np.repeat(np.arange(len(rows)), sizes)
        inside = np.arange(len(which)) - starts[which]
        slots = bases[which] * RUN + self.columns[self.first[rows][which] + inside]
        fits = ~np.logical_or.reduceat(self.taken[slots], starts)
        # Among those that fit, a slot goes to the first row that wants it.
        wanted = np.flatnonzero(fits[which])[::-1]
        owner = np.empty(len(self.taken), np.int64)
        owner[slots[wanted]] = which[wanted]
        lost = wanted[owner[slots[wanted]] != which[wanted]]
        fits[which[lost]] = False
        self.bases[rows[fits]] = bases[fits]
        self.taken[slots[fits[which]]] = True
        return rows[~fits]

    def _fill(self) -> None:
        """Rows of one n-gram take the free slots of their place in a run."""
        single = np.flatnonzero(self.sizes == 1)
        columns = self.columns[self.first[single]]
        inner = np.arange(self.row_runs - 1, self.runs - self.row_runs + 1)
        for place in range(RUN):
            rows = single[columns % RUN == place]
            free = inner[~self.taken[inner * RUN + place]][: len(rows)]
            self.bases[rows] = free - columns[columns % RUN == place] // RUN

    def _grow(self, runs: int) -> None:
        self.taken = np.concatenate([self.taken, np.zeros((runs - self.runs) * RUN, np.bool_)])
        self.runs = runs
