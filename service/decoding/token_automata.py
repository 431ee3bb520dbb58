"""Automata over the tokens of a vocabulary, from automata over the units that tokens spell.

S states, C classes of tokens, G groups of tokens, V vocabulary.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from service.bundle.arrays import BoolArray, Int32Array, Int64Array
from service.bundle.text import SPECIAL_TOKENS
from service.decoding.patterns import PAUSE_S, Automaton
from service.decoding.spelling import Spelling

FAR = np.iinfo(np.int32).max
# Cells of one table, states · kinds of tokens: 16 MiB.
MAX_CELLS = 2**22
# The engines' threads need Python's lock: they get it after so many cells.
_CELLS_IN_A_ROW = 2**14


class TooLargeError(Exception):
    """An automaton over its limit: the message says which, and holds nothing of a request."""


@dataclass(frozen=True, slots=True)
class TokenAutomaton:
    """A deterministic automaton over tokens. State 0 is the first, and state S the dead one."""

    following: Int32Array  # [S + 1, C + 1] state after a class; class C is never allowed
    class_of: Int64Array  # [V]
    accepting: BoolArray  # [S + 1]
    missing: Int32Array | None = None  # [S + 1] fewest tokens of words that are still to come

    @classmethod
    def of(cls, automaton: Automaton, spelling: Spelling) -> "TokenAutomaton":
        """The texts that an automaton over units accepts, however tokens spell them.

        Raises TooLargeError.
        """
        groups, group_of = _groups(automaton, spelling)
        table = _table(automaton)
        dead = len(table) - 1
        first, later = (_Columns([x[i] for x in groups]) for i in range(2))
        begins_apart = any(x != y for x, y in groups)
        # By state of the new automaton, the state of the old one, and the other way round.
        states = [0]
        number_of = np.full(dead + 1, -1, np.int32)
        if not begins_apart:
            number_of[0] = 0
        rows: list[Int32Array] = []
        done = 0
        batch = max(1, _CELLS_IN_A_ROW // len(groups))
        while done < len(states):
            is_start = begins_apart and done == 0
            now = np.array(states[done : done + (1 if is_start else batch)], np.int32)
            after = (first if is_start else later).walked(table, now)  # [b, G]
            for state in np.unique(after).tolist():
                if state != dead and number_of[state] < 0:
                    number_of[state] = len(states)
                    states.append(state)
            check_cells(len(states), len(groups))
            rows.append(after)
            done += len(now)
            if done < len(states):
                time.sleep(PAUSE_S)
        number_of[dead] = len(states)
        everything = np.vstack([*rows, np.full((1, len(groups)), dead, np.int32)])
        accepting = np.array([*automaton.accepting, False])[[*states, dead]]
        return cls(number_of[everything], group_of, accepting)

    def and_also(self, other: "TokenAutomaton", max_states: int) -> "TokenAutomaton":
        """The texts that both accept. Raises TooLargeError.

        It may have as many states as the larger of both, or `max_states` where that is more.
        """
        limit = max(max_states, len(self.accepting), len(other.accepting))
        # The last kind has the last classes of both: it is never allowed, either.
        pairs = np.stack((self.class_of, other.class_of))
        kinds, class_of = np.unique(pairs, axis=1, return_inverse=True)
        mine, theirs = self.following[:, kinds[0]], other.following[:, kinds[1]]
        width = len(other.accepting)
        number_of = {0: 0}
        states = [0]
        rows = []
        for i, state in enumerate(states):  # grows on the way
            own, others = mine[state // width], theirs[state % width]
            ways = own.astype(np.int64) * width + others
            ways[(own == len(mine) - 1) | (others == len(theirs) - 1)] = -1
            for way in np.unique(ways).tolist():
                if way >= 0 and way not in number_of:
                    number_of[way] = len(states)
                    states.append(way)
            if len(states) > limit:
                raise TooLargeError(f"their automaton is too large; at most {limit} states")
            check_cells(len(states), kinds.shape[1])
            rows.append(ways)
            if i % 64 == 63:
                time.sleep(PAUSE_S)
        codes = np.array(states)
        everything = np.vstack([*rows, np.full((1, kinds.shape[1]), -1)])
        order = np.argsort(codes)
        places = order[np.searchsorted(codes[order], np.maximum(everything, 0))]
        following = np.where(everything < 0, len(states), places).astype(np.int32)
        accepting = self.accepting[codes // width] & other.accepting[codes % width]
        missing = other.missing if self.missing is None else self.missing
        of_state = codes // width if other.missing is None else codes % width
        if missing is not None:
            missing = np.append(missing[of_state], np.int32(FAR))
        return TokenAutomaton(following, class_of.ravel(), np.append(accepting, False), missing)

    def distances(self) -> Int32Array:
        """By state, the fewest tokens to an accepting one, [S + 1]; FAR where there is no way."""
        dead = len(self.accepting) - 1
        before: list[list[int]] = [[] for _ in range(dead + 1)]
        for state in range(dead):
            for after in np.unique(self.following[state]).tolist():
                before[after].append(state)
            if state % 256 == 255:
                time.sleep(PAUSE_S)
        distance = np.where(self.accepting, 0, FAR)
        pending = np.flatnonzero(self.accepting).tolist()
        for state in pending:  # grows on the way
            for earlier in before[state]:
                if distance[earlier] == FAR:
                    distance[earlier] = distance[state] + 1
                    pending.append(earlier)
        return distance.astype(np.int32)


def check_cells(states: int, kinds: int) -> None:
    """Raise TooLargeError for a table with too many cells."""
    if states * kinds > MAX_CELLS:
        raise TooLargeError(
            f"its automaton over the model's tokens is too large; at most {MAX_CELLS} states · "
            "kinds of tokens are allowed"
        )


class _Columns:
    """What groups of tokens spell, as classes of an automaton over units."""

    def __init__(self, spelled: Sequence[tuple[int, ...] | None]) -> None:
        """None for a group that no text has."""
        self._never = np.array([x is None for x in spelled])
        texts = [x or () for x in spelled]
        self._at = []  # by position, the groups that are longer, and their classes there
        for position in range(max(map(len, texts))):
            longer = [i for i, x in enumerate(texts) if len(x) > position]
            classes = [texts[i][position] for i in longer]
            self._at.append((np.array(longer), np.array(classes)))

    def walked(self, table: Int32Array, states: Int32Array) -> Int32Array:
        """The state after each group [b, G] from each state [b]."""
        after = np.repeat(states[:, None], len(self._never), axis=1)
        for groups, classes in self._at:
            after[:, groups] = table[after[:, groups], classes]
        after[:, self._never] = len(table) - 1
        return after


_Spelled = tuple[int, ...] | None


def _groups(
    automaton: Automaton, spelling: Spelling
) -> tuple[list[tuple[_Spelled, _Spelled]], Int64Array]:
    """What tokens spell, first and later, each once, and whose it is [V]; the last is never."""

    def classes(units: tuple[str, ...]) -> _Spelled:
        found = tuple(automaton.class_of.get(unit, -1) for unit in units)
        return None if -1 in found else found

    number_of: dict[tuple[_Spelled, _Spelled], int] = {}
    groups = []
    for first, later in zip(spelling.first, spelling.later, strict=True):
        both = classes(first), classes(later)
        groups.append(-1 if both == (None, None) else number_of.setdefault(both, len(number_of)))
    never = len(number_of)
    group_of = np.array([*([-1] * len(SPECIAL_TOKENS)), *groups], np.int64)
    return [*number_of, (None, None)], np.where(group_of < 0, never, group_of)


def _table(automaton: Automaton) -> Int32Array:
    """The automaton over units as a table with a dead state, the last. Raises TooLargeError."""
    dead = len(automaton.transitions)
    classes = max(automaton.class_of.values(), default=-1) + 1
    check_cells(dead + 1, max(1, classes))
    table = np.full((dead + 1, max(1, classes)), dead, np.int32)
    for state, ways in enumerate(automaton.transitions):
        table[state, list(ways.keys())] = list(ways.values())
    return table
