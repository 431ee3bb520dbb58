"""Rows of searches: the tokens and score of each row, and the model's states after them.

N sources, K rows of each (its width), B = N · K, M memory positions, V target vocabulary, T tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from service.bundle.arrays import BoolArray, Float32Array, Float64Array, Ids, Int64Array
from service.bundle.text import BOS_ID
from service.decoding.constraints import Constraint, by_constraint
from service.decoding.search import FinishReason, Hypothesis, Search
from service.runtime.encoder_decoder import Encoded, Step, Tensors

# A hypothesis is stuck in a loop if it ends in a cycle of at most this many tokens, …
LONGEST_CYCLE = 16
# … repeated at least this often, over at least this many tokens.
CYCLE_REPEATS = 4
CYCLE_TOKENS = 24
_LOOK_EVERY = 8  # tokens between two searches for cycles

# What stands once for each search.
_SEARCH = np.dtype(
    [
        ("positions", np.int64),
        ("limits", np.int64),  # most tokens
        ("forced", np.int64),  # tokens that are given
        ("penalties", np.float64),  # p of the score's divisor, length ** p
        ("reach", np.float64),  # the divisor of a score at the limit
        ("floors", np.float64),  # what a beam must score to be kept
        ("leads", np.float64),  # what a beam must score to be the best
        ("endings", np.float64, 2),  # nats of the two likeliest that ended
        ("settled", np.bool_),  # whether its best hypothesis is sure
        ("is_free", np.bool_),  # whether it has no constraint
        ("is_sampled", np.bool_),
        ("is_heard", np.bool_),  # whether it has a listener
        ("attends", np.bool_),  # whether it wants the attention
        ("writes_unknown", np.bool_),
    ]
)


@dataclass(slots=True)
class Move:
    """One step of every row: the model's output, and the tokens that the choosers pick."""

    logprobs: Float32Array  # [N, K, V]
    attention: Float32Array | None  # [N, K, M]
    origins: Int64Array  # [N, K] the row of its source that each row continues
    tokens: Int64Array  # [N, K] the token that each row takes

    @classmethod
    def of(cls, step: Step, width: int) -> "Move":
        """The model's output; every row continues itself until a chooser changes that."""
        count = len(step.logprobs) // width
        attention = step.attention
        return cls(
            step.logprobs.reshape(count, width, -1),
            None if attention is None else attention.reshape(count, width, -1),
            np.tile(np.arange(width), (count, 1)),
            np.empty((count, width), np.int64),
        )


class SearchRows:
    """Arrays over the rows of some searches, and over the searches themselves, of one width."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.searches: list[Search] = []
        # The model's states after the last step, as it gave them, then those of new sources; and
        # where each row continues: they are copied once, into the next step.
        self._states: Tensors = ()
        self._origins = np.empty(0, np.int64)  # [B]
        self._memory: Tensors = ()  # [N, …] each, and room for more
        self.tokens = np.empty(0, np.int64)  # [B] what each row reads next
        self.sums = np.empty((0, width))  # [N, K] nats; -inf for a row that is done or unused
        self.written: Ids = np.empty((0, 0), np.uint16)  # [B, T]
        self.picked: Float32Array = np.empty((0, 0), np.float32)  # [B, T] log-probabilities
        self.matching = np.empty((0, width), np.int64)  # [N, K] state of the constraint, or 0
        self._use(np.empty(0, _SEARCH))
        self._constrained: list[tuple[Constraint, Int64Array]] = []  # and the places of its sources

    def _use(self, table: npt.NDArray[np.void]) -> None:
        """Take the searches' table [N], and name its columns."""
        self._table = table
        self.positions: Int64Array = table["positions"]
        self.limits: Int64Array = table["limits"]
        self.forced: Int64Array = table["forced"]
        self.penalties: Float64Array = table["penalties"]
        self.reach: Float64Array = table["reach"]
        self.floors: Float64Array = table["floors"]
        self.leads: Float64Array = table["leads"]
        self.endings: Float64Array = table["endings"]  # [N, 2]
        self.settled: BoolArray = table["settled"]
        self.is_free: BoolArray = table["is_free"]
        self.is_sampled: BoolArray = table["is_sampled"]
        self.is_heard: BoolArray = table["is_heard"]
        self.attends: BoolArray = table["attends"]
        self.writes_unknown: BoolArray = table["writes_unknown"]

    @property
    def memory(self) -> Tensors:
        """The memory that each source's rows attend to, [N, …] each."""
        return tuple(tensor[: len(self.searches)] for tensor in self._memory)

    @property
    def new(self) -> int:
        """How many of the last sources have not begun: the K rows of each are still the same."""
        begun = np.flatnonzero(self.positions)
        return len(self.positions) - (int(begun[-1]) + 1 if len(begun) else 0)

    def states(self, rows: slice) -> Tensors:
        """The model's states before the next step of some rows."""
        origins = self._origins[rows]
        return tuple(state.take(origins, axis=0) for state in self._states)

    def add(self, searches: Sequence[Search], encoded: Encoded) -> None:
        """Add sources that were encoded together."""
        width, count = self.width, len(searches)
        room = max([self.written.shape[1], *(x.max_tokens for x in searches)])
        blank = np.zeros((count * width, room), np.uint16)
        coming = _table_of(searches)
        # A beam search starts with one live row (the others would be copies), samples with all.
        sums = np.where(np.arange(width) == 0, 0.0, -np.inf)  # [K]
        sums = np.where(coming["is_sampled"][:, None], 0.0, sums)  # [N, K]
        origins = np.repeat(np.arange(count), width)
        if not self.searches:
            self._states, self._memory, self._origins = encoded.states, encoded.memory, origins
        else:
            self._origins = _joined(self._origins, origins + len(self._states[0]))
            self._states = tuple(map(_joined, self._states, encoded.states))
            self._memory = tuple(
                _appended(tensor, len(self.searches), new)
                for tensor, new in zip(self._memory, encoded.memory, strict=True)
            )
        self.tokens = _joined(self.tokens, np.full(count * width, BOS_ID, np.int64))
        self.sums = _joined(self.sums, sums)
        self.written = _joined(_widened(self.written, room), blank)
        self.picked = _joined(_widened(self.picked, room), blank.astype(np.float32))
        self.matching = _joined(self.matching, np.zeros((count, width), np.int64))
        self._use(_joined(self._table, coming))
        self.searches = [*self.searches, *searches]
        self._constrained = self.constrained(range(len(self.searches)))

    def keep(self, stays: BoolArray) -> Int64Array:
        """Only the sources that stay [N] are kept; returns their rows as they were, [B].

        The last ones move to where others have left: so what is kept for a source, and large, is
        moved only where it must be.
        """
        count = int(np.count_nonzero(stays))
        left = np.flatnonzero(~stays[:count])
        moved = count + np.flatnonzero(stays[count:])
        for tensor in self._memory:
            tensor[left] = tensor[moved]
        index = np.arange(count)
        index[left] = moved
        rows = (index[:, None] * self.width + np.arange(self.width)).ravel()
        self._origins = self._origins[rows]
        self.tokens, self.sums = self.tokens[rows], self.sums[index]
        self.written = self.written.take(rows, axis=0)
        self.picked = self.picked.take(rows, axis=0)
        self.matching = self.matching[index]
        self._use(self._table[index])
        self.searches = [self.searches[i] for i in index.tolist()]
        self._constrained = self.constrained(range(count))
        return rows

    def advance(self, move: Move, states: Tensors) -> None:
        """Let every row follow its origin and take its token; `states` are those after the step."""
        count, width = move.origins.shape
        each = np.arange(count)[:, None]  # [N, 1]
        picked = move.logprobs[each, move.origins, move.tokens]  # [N, K]
        index = (each * width + move.origins).ravel()  # [B]
        rows = np.arange(count * width)
        self._states, self._origins = states, index
        if width > 1 and not np.array_equal(index, rows):
            self.written = self.written.take(index, axis=0)
            self.picked = self.picked.take(index, axis=0)
        self.tokens = move.tokens.ravel()
        positions = np.repeat(self.positions, width)
        self.written[rows, positions] = self.tokens
        self.picked[rows, positions] = picked.ravel()
        self.positions += 1
        for constraint, places in self._constrained:
            before = self.matching[places[:, None], move.origins[places]]  # [N', K]
            self.matching[places] = constraint.after(before, move.tokens[places])
        for search, position in zip(self.searches, self.positions.tolist(), strict=True):
            search.position = position
        if move.attention is not None:
            for i in np.flatnonzero(self.attends).tolist():
                # Copies: a view would keep the weights of all sources.
                kept = move.origins[i].copy(), move.attention[i].copy()
                self.searches[i].trace.append(kept)

    def rows_of(self, place: int) -> slice:
        """The rows of a source among all rows."""
        return slice(place * self.width, (place + 1) * self.width)

    def live(self, place: int) -> Int64Array:
        """The rows of a source that still write, ascending."""
        return np.flatnonzero(self.sums[place] > -np.inf)

    # --- constraints ----------------------------------------------------------------------------

    def constrained(self, places: Sequence[int]) -> list[tuple[Constraint, Int64Array]]:
        """Each constraint of these sources, and where among them those that have it are."""
        if self.is_free.all():
            return []
        return by_constraint((i, self.searches[place].constraint) for i, place in enumerate(places))

    def allowed(self, constraint: Constraint, places: Int64Array) -> BoolArray:
        """The tokens that rows of these sources may have next, [N', K, V].

        After each of them the target can still become a match and end within its limit.
        """
        left = self.limits[places] - self.positions[places] - 1  # without eos
        states = self.matching[places]
        allowed = constraint.allowed(states.ravel(), np.repeat(left, self.width))
        allowed = allowed.reshape(*states.shape, -1)
        # Rows that are done need some next token, though nothing uses it.
        allowed[self.sums[places] == -np.inf] = True
        return allowed

    # --- endings --------------------------------------------------------------------------------

    def end(self, place: int, rows: Int64Array, reason: FinishReason) -> None:
        """Turn live rows into hypotheses; they write no more."""
        search = self.searches[place]
        for row in rows.tolist():
            total = float(self.sums[place, row])
            if total == -math.inf:
                continue
            written = place * self.width + row, slice(search.position)
            tokens, logprobs = self.written[written].tolist(), self.picked[written].tolist()
            attention = search.attention_of(row)
            self.found(
                place, Hypothesis(tuple(tokens), tuple(logprobs), total, reason, row, attention)
            )
            self.sums[place, row] = -math.inf
            self.endings[place] = np.sort(np.append(self.endings[place], total))[:0:-1]

    def found(self, place: int, hypothesis: Hypothesis) -> None:
        """Keep a hypothesis of a source."""
        search = self.searches[place]
        search.keep(hypothesis)
        self.floors[place], self.leads[place] = search.floor, search.lead

    @property
    def at_limit(self) -> BoolArray:
        """Which sources have reached their maximum length, [N]."""
        return np.asarray(self.positions >= self.limits)

    @property
    def looks(self) -> BoolArray:
        """Which sources to check for rows in a loop, [N]: each every few tokens."""
        due = self.positions % _LOOK_EVERY == 0
        # A constraint may ask for a cycle, and ends the others in time.
        return np.asarray(due & self.is_free & (self.positions >= CYCLE_TOKENS))

    def going_round(self, place: int) -> Int64Array:
        """The rows of a source that end in a cycle."""
        position = self.searches[place].position
        written = self.written[self.rows_of(place), :position]
        found = np.zeros(self.width, np.bool_)
        for cycle in range(1, LONGEST_CYCLE + 1):
            span = max(CYCLE_REPEATS * cycle, CYCLE_TOKENS)
            if span <= position:
                tail = written[:, -span:]
                found |= (tail[:, cycle:] == tail[:, :-cycle]).all(axis=1)
        return np.flatnonzero(found)


def _table_of(searches: Sequence[Search]) -> npt.NDArray[np.void]:
    table = np.zeros(len(searches), _SEARCH)
    table["limits"] = [x.max_tokens for x in searches]
    table["forced"] = [len(x.forced) for x in searches]
    table["penalties"] = [x.length_penalty for x in searches]
    table["reach"] = [math.pow(x.max_tokens, x.length_penalty) for x in searches]
    for name in ("floors", "leads", "endings"):
        table[name] = -np.inf
    table["is_free"] = [x.constraint is None for x in searches]
    table["is_sampled"] = [x.params is not None for x in searches]
    table["is_heard"] = [x.listener is not None for x in searches]
    table["attends"] = [x.wants_attention for x in searches]
    table["writes_unknown"] = [x.writes_unknown for x in searches]
    return table


def _joined(before: npt.NDArray[np.generic], coming: npt.NDArray[np.generic]) -> npt.NDArray[Any]:
    return np.concatenate((before, coming))


def _appended(tensor: Float32Array, count: int, coming: Float32Array) -> Float32Array:
    """The first `count` of the tensor, then what comes: in its place where there is room."""
    needed = count + len(coming)
    if needed > len(tensor):
        wider = np.empty((max(needed, 2 * count), *tensor.shape[1:]), tensor.dtype)
        wider[:count] = tensor[:count]
        tensor = wider
    tensor[count:needed] = coming
    return tensor


def _widened(array: npt.NDArray[Any], columns: int) -> npt.NDArray[Any]:
    return np.pad(array, ((0, 0), (0, columns - array.shape[1])))
