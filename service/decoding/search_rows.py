"""Rows of searches: the tokens and score of each row, and the model's states after them.

N sources, K rows of each (its width), B = N · K, M memory positions, V target vocabulary, T tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from service.bundle.arrays import BoolArray, Float32Array, Ids, Int64Array
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
        self.states: Tensors = ()  # [B, …] each
        self._memory: Tensors = ()  # [N, …] each, and room for more
        self.tokens = np.empty(0, np.int64)  # [B] what each row reads next
        self.sums = np.empty((0, width))  # [N, K] nats; -inf for a row that is done or unused
        self.written: Ids = np.empty((0, 0), np.uint16)  # [B, T]
        self.picked: Float32Array = np.empty((0, 0), np.float32)  # [B, T] log-probabilities
        self.matching = np.empty((0, width), np.int64)  # [N, K] state of the constraint, or 0
        # Of each search, [N]:
        self.positions = np.empty(0, np.int64)
        self.limits = np.empty(0, np.int64)  # most tokens
        self.reach = np.empty(0)  # the divisor of a score at the limit
        self.floors = np.empty(0)  # what a beam must score to be kept
        self.leads = np.empty(0)  # what a beam must score to be the best
        self.endings = np.empty((0, 2))  # [N, 2] nats of the two likeliest that ended
        self.settled = np.empty(0, np.bool_)  # whether its best hypothesis is sure
        self.is_free = np.empty(0, np.bool_)  # whether it has no constraint
        self._constrained: list[tuple[Constraint, Int64Array]] = []  # and the places of its sources

    @property
    def memory(self) -> Tensors:
        """The memory that each source's rows attend to, [N, …] each."""
        return tuple(tensor[: len(self.searches)] for tensor in self._memory)

    def add(self, searches: Sequence[Search], encoded: Encoded) -> None:
        """Add sources that were encoded together."""
        width, count = self.width, len(searches)
        states = tuple(np.repeat(state, width, axis=0) for state in encoded.states)
        room = max([self.written.shape[1], *(x.max_tokens for x in searches)])
        blank = np.zeros((count * width, room), np.uint16)
        sums = np.full((count, width), -np.inf)
        for row, search in zip(sums, searches, strict=True):
            # A beam search starts with one live row (the others would be copies), samples with all.
            row[: 1 if search.params is None else width] = 0.0
        reach = [math.pow(x.max_tokens, x.length_penalty) for x in searches]
        if not self.searches:
            self.states, self._memory = states, encoded.memory
        else:
            self.states = tuple(map(_joined, self.states, states))
            self._memory = tuple(
                _appended(tensor, len(self.searches), coming)
                for tensor, coming in zip(self._memory, encoded.memory, strict=True)
            )
        self.tokens = _joined(self.tokens, np.full(count * width, BOS_ID, np.int64))
        self.sums = _joined(self.sums, sums)
        self.written = _joined(_widened(self.written, room), blank)
        self.picked = _joined(_widened(self.picked, room), blank.astype(np.float32))
        self.positions = _joined(self.positions, np.zeros(count, np.int64))
        self.limits = _joined(self.limits, np.array([x.max_tokens for x in searches], np.int64))
        self.reach = _joined(self.reach, np.array(reach))
        self.floors = _joined(self.floors, np.full(count, -np.inf))
        self.leads = _joined(self.leads, np.full(count, -np.inf))
        self.endings = _joined(self.endings, np.full((count, 2), -np.inf))
        self.settled = _joined(self.settled, np.zeros(count, np.bool_))
        self.matching = _joined(self.matching, np.zeros((count, width), np.int64))
        self.is_free = _joined(self.is_free, np.array([x.constraint is None for x in searches]))
        self.searches = [*self.searches, *searches]
        self._constrained = self.constrained(range(len(self.searches)))

    def keep(self, places: Sequence[int]) -> Int64Array:
        """Only the sources at these places stay; returns their rows as they were, [B].

        The last ones move to where others have left: so what is kept for a source, and large, is
        moved only where it must be.
        """
        index = np.arange(len(places))
        stays = np.array(places, np.int64)
        left = np.setdiff1d(index, stays)
        index[left] = stays[stays >= len(places)]
        for tensor in self._memory:
            tensor[left] = tensor[index[left]]
        rows = (index[:, None] * self.width + np.arange(self.width)).ravel()
        self.states = tuple(state.take(rows, axis=0) for state in self.states)
        self.tokens, self.sums = self.tokens[rows], self.sums[index]
        self.written, self.picked = self.written[rows], self.picked[rows]
        self.positions, self.limits = self.positions[index], self.limits[index]
        self.reach, self.floors = self.reach[index], self.floors[index]
        self.leads, self.endings = self.leads[index], self.endings[index]
        self.settled = self.settled[index]
        self.matching, self.is_free = self.matching[index], self.is_free[index]
        self.searches = [self.searches[i] for i in index.tolist()]
        self._constrained = self.constrained(range(len(self.searches)))
        return rows

    def advance(self, move: Move, states: Tensors) -> None:
        """Let every row follow its origin and take its token; `states` are those after the step."""
        count, width = move.origins.shape
        each = np.arange(count)[:, None]  # [N, 1]
        picked = move.logprobs[each, move.origins, move.tokens]  # [N, K]
        index = (each * width + move.origins).ravel()  # [B]
        rows = np.arange(count * width)
        self.states = states
        if width > 1 and not np.array_equal(index, rows):
            self.states = tuple(state.take(index, axis=0) for state in states)
            self.written = self.written.take(index, axis=0)
            self.picked = self.picked.take(index, axis=0)
        self.tokens = move.tokens.ravel()
        positions = np.repeat(self.positions, width)
        self.written[rows, positions] = self.tokens
        self.picked[rows, positions] = picked.ravel()
        self.positions = self.positions + 1
        for constraint, places in self._constrained:
            before = self.matching[places[:, None], move.origins[places]]  # [N', K]
            self.matching[places] = constraint.after(before, move.tokens[places])
        for search, position in zip(self.searches, self.positions.tolist(), strict=True):
            search.position = position
        if move.attention is not None:
            for i, search in enumerate(self.searches):
                if search.wants_attention:
                    # Copies: a view would keep the weights of all sources.
                    search.trace.append((move.origins[i].copy(), move.attention[i].copy()))

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
