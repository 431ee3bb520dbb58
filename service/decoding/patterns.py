"""A regular expression as a deterministic automaton over a vocabulary's characters.

Python's own parser reads the pattern and its own engine says which characters a class holds, so
that a text is accepted exactly where `re.fullmatch` takes it. Characters of the pattern become
positions (Glushkov 1961), sets of positions become states (Rabin and Scott 1959). Both are counted
against a budget, and so is every step: the same pattern always gets the same answer.
"""

import importlib
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

# The standard library's parser is private (docs/decisions.md says why it is used). A node that is
# not known here is rejected by name.
_parser = importlib.import_module("re._parser")

_REPEATS = frozenset({"MAX_REPEAT", "MIN_REPEAT"})
_BEGINNINGS = frozenset({"AT_BEGINNING", "AT_BEGINNING_STRING"})
_ENDS = frozenset({"AT_END", "AT_END_STRING"})
_REFUSED = {
    "GROUPREF": "backreferences are not regular",
    "GROUPREF_EXISTS": "conditional groups are not regular",
    "ASSERT": "lookaheads and lookbehinds are not supported",
    "ASSERT_NOT": "lookaheads and lookbehinds are not supported",
    "ATOMIC_GROUP": "atomic groups are not supported",
    "POSSESSIVE_REPEAT": "possessive repetitions are not supported",
    "AT": "^, $, \\A and \\Z stand at the ends of a pattern only, and \\b and \\B nowhere",
}
_CATEGORIES = {
    "CATEGORY_DIGIT": r"\d",
    "CATEGORY_NOT_DIGIT": r"\D",
    "CATEGORY_SPACE": r"\s",
    "CATEGORY_NOT_SPACE": r"\S",
    "CATEGORY_WORD": r"\w",
    "CATEGORY_NOT_WORD": r"\W",
}
_KINDS_OF_CLASSES = re.ASCII | re.UNICODE  # one excludes the other
_FLAGS_OF_CLASSES = re.IGNORECASE | re.DOTALL | re.ASCII

# The engines' threads need Python's lock between their steps: after so many of ours, about half a
# millisecond, they get it. Of steps that take 0.19 ms at most in 99 of 100 cases, these then take
# 0.7 ms beside a compilation, and without the pauses 9.4 ms.
_STEPS_IN_A_ROW = 2048
PAUSE_S = 1e-4
# Python's engine draws up a table of a range's codepoints.
_WIDTH_A_STEP = 4


class PatternError(Exception):
    """A pattern that cannot be compiled: why, and what is allowed. It holds nothing of it."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What compiling a pattern may take."""

    states: int  # and positions: characters of the pattern, with its repetitions written out
    steps: int


@dataclass(frozen=True, slots=True)
class Automaton:
    """A deterministic automaton. State 0 is the first; what has no transition is not accepted."""

    class_of: dict[str, int]  # the characters of a class act alike; characters never read have none
    transitions: list[dict[int, int]]  # by state: from a class to a state
    accepting: list[bool]  # by state


def compile_pattern(pattern: str, characters: Sequence[str], budget: Budget) -> Automaton:
    """The automaton of the texts of these characters that match as a whole.

    Raises PatternError.
    """
    try:
        tree = _parser.parse(pattern)
        positions = _Positions(characters, budget)
        whole = positions.sequence(list(tree), tree.state.flags, at_start=True, at_end=True)
    # A warning (of sets in sets) is raised where the process makes errors of them.
    except (re.error, FutureWarning) as error:
        where = f" at position {error.pos}" if isinstance(error, re.error) else ""
        raise PatternError(f"not a regular expression of Python's `re`{where}") from error
    except OverflowError as error:
        raise PatternError("a repetition has too large a number") from error
    except RecursionError as error:
        raise PatternError("groups are nested too deeply") from error
    return positions.automaton(whole)


@dataclass(frozen=True, slots=True)
class _Fragment:
    """A part of a pattern: sets of positions, as bits."""

    first: int  # with which a match can begin
    last: int  # with which it can end
    nullable: bool  # whether the empty text matches


_EMPTY = _Fragment(0, 0, nullable=True)
_NOTHING = _Fragment(0, 0, nullable=False)


class _Positions:
    """The positions of a pattern, what each reads and which can follow it."""

    def __init__(self, characters: Sequence[str], budget: Budget) -> None:
        self._characters = characters
        self._budget = budget
        self._steps = 0
        self._follow: list[int] = []  # by position, positions as bits
        self._read_at: dict[int, int] = {}  # from a set of characters to positions, both as bits
        self._known: dict[tuple[str, int], int] = {}  # sets of characters, as bits

    # --- from the tree to positions -------------------------------------------------------------

    def sequence(
        self, nodes: list[Any], flags: int, *, at_start: bool = False, at_end: bool = False
    ) -> _Fragment:
        """One node after another; `at_start`: nothing can come before, `at_end`: nothing after."""
        # A whole text is matched: what asks for its ends there asks for nothing.
        while at_start and nodes and _anchor(nodes[0]) in _BEGINNINGS:
            nodes = nodes[1:]
        while at_end and nodes and _anchor(nodes[-1]) in _ENDS:
            nodes = nodes[:-1]
        whole = _EMPTY
        for i, node in enumerate(nodes):
            starts, ends = at_start and i == 0, at_end and i == len(nodes) - 1
            whole = self._joined(whole, self._node(node, flags, at_start=starts, at_end=ends))
        return whole

    def _node(self, node: Any, flags: int, *, at_start: bool, at_end: bool) -> _Fragment:
        self._spend(1)
        kind, value = str(node[0]), node[1]
        if kind in _REPEATS:
            low, high, item = value
            most = None if high is _parser.MAXREPEAT else int(high)
            return self._repeated(int(low), most, list(item), flags)
        if kind == "BRANCH":
            parts = [
                self.sequence(list(x), flags, at_start=at_start, at_end=at_end) for x in value[1]
            ]
            return _either(parts)
        if kind == "SUBPATTERN":
            _, added, removed, item = value
            if added & _KINDS_OF_CLASSES:
                flags &= ~_KINDS_OF_CLASSES
            flags = (flags | added) & ~removed
            return self.sequence(list(item), flags, at_start=at_start, at_end=at_end)
        width = _width(value) if kind == "IN" else 0
        return self._position(_class_text(kind, value), flags & _FLAGS_OF_CLASSES, width)

    def _position(self, class_text: str, flags: int, width: int) -> _Fragment:
        """A position that reads one character of a class."""
        members = self._members(class_text, flags, width)
        if not members:
            return _NOTHING
        if len(self._follow) == self._budget.states:
            raise self._too_large()
        bit = 1 << len(self._follow)
        self._follow.append(0)
        self._read_at[members] = self._read_at.get(members, 0) | bit
        return _Fragment(bit, bit, nullable=False)

    def _members(self, class_text: str, flags: int, width: int) -> int:
        """The characters of a class, as bits."""
        key = (class_text, flags)
        if key not in self._known:
            self._spend(len(self._characters) + width // _WIDTH_A_STEP)
            matches = re.compile(class_text, flags).fullmatch
            found = (1 << i for i, x in enumerate(self._characters) if matches(x))
            self._known[key] = sum(found)
        return self._known[key]

    def _repeated(self, low: int, high: int | None, item: list[Any], flags: int) -> _Fragment:
        """So many copies, the last of them first; all beyond `low` are optional."""
        if high == 0:
            return _EMPTY
        copy = self.sequence(item, flags)
        if not copy.first:
            # However often: the empty text, or what nothing matches.
            return _EMPTY if copy.nullable or low == 0 else _NOTHING
        if high is None:
            self._link(copy.last, copy.first)
        count = max(low, 1) if high is None else high
        whole = _EMPTY
        for number in range(count, 0, -1):
            if number < count:
                copy = self.sequence(item, flags)
            whole = self._joined(copy, whole)
            if number > low:
                whole = _Fragment(whole.first, whole.last, nullable=True)
        return whole

    def _joined(self, before: _Fragment, after: _Fragment) -> _Fragment:
        self._link(before.last, after.first)
        return _Fragment(
            first=before.first | (after.first if before.nullable else 0),
            last=after.last | (before.last if after.nullable else 0),
            nullable=before.nullable and after.nullable,
        )

    def _link(self, before: int, after: int) -> None:
        """Each of these positions can be followed by each of those."""
        self._spend(before.bit_count())
        for position in _bits(before):
            self._follow[position] |= after

    # --- from positions to states ---------------------------------------------------------------

    def automaton(self, whole: _Fragment) -> Automaton:
        """A state is the positions that can be read next, and whether the text may end here."""
        class_of, readers = self._classes()
        start = (whole.first, whole.nullable)
        number_of = {start: 0}
        states = [start]
        transitions: list[dict[int, int]] = []
        for following, _ in states:  # grows on the way
            ways = {}
            for class_, readers_of_class in enumerate(readers):
                reading = following & readers_of_class
                self._spend(1 + reading.bit_count())
                if not reading:
                    continue
                after = 0
                for position in _bits(reading):
                    after |= self._follow[position]
                state = (after, bool(reading & whole.last))
                if state not in number_of:
                    if len(states) == self._budget.states:
                        raise self._too_large()
                    number_of[state] = len(states)
                    states.append(state)
                ways[class_] = number_of[state]
            transitions.append(ways)
        return Automaton(class_of, transitions, [accepting for _, accepting in states])

    def _classes(self) -> tuple[dict[str, int], list[int]]:
        """The class of each character that is read anywhere; the positions that read a class."""
        class_of: dict[str, int] = {}
        number_of: dict[int, int] = {}  # by the positions that read it
        for i, character in enumerate(self._characters):
            self._spend(len(self._read_at))
            # Every position reads one set: the sum is a union.
            readers = sum(x for members, x in self._read_at.items() if members >> i & 1)
            if readers:
                class_of[character] = number_of.setdefault(readers, len(number_of))
        return class_of, list(number_of)

    # --- the budget -----------------------------------------------------------------------------

    def _spend(self, steps: int) -> None:
        before = self._steps
        self._steps += steps
        if self._steps > self._budget.steps:
            raise PatternError("compiling it takes too many steps; give a simpler pattern")
        if self._steps // _STEPS_IN_A_ROW > before // _STEPS_IN_A_ROW:
            time.sleep(PAUSE_S)

    def _too_large(self) -> PatternError:
        return PatternError(
            f"its automaton is too large; at most {self._budget.states} states are allowed, and as "
            "many characters with all repetitions written out"
        )


def _anchor(node: Any) -> str | None:
    return str(node[1]) if str(node[0]) == "AT" else None


def _either(parts: Sequence[_Fragment]) -> _Fragment:
    first = last = 0
    for part in parts:
        first |= part.first
        last |= part.last
    return _Fragment(first, last, nullable=any(part.nullable for part in parts))


def _class_text(kind: str, value: Any) -> str:
    """A pattern of its own for the one character that a node of the tree reads."""
    if kind == "ANY":
        return "."
    if kind in {"LITERAL", "NOT_LITERAL"}:
        return f"[{'^' if kind == 'NOT_LITERAL' else ''}{_escaped(value)}]"
    if kind != "IN":
        raise PatternError(_REFUSED.get(kind, "it has a part that is not supported"))
    parts = []
    for item_kind, item in ((str(x[0]), x[1]) for x in value):
        if item_kind == "NEGATE":
            parts.append("^")
        elif item_kind == "LITERAL":
            parts.append(_escaped(item))
        elif item_kind == "RANGE":
            parts.append(f"{_escaped(item[0])}-{_escaped(item[1])}")
        else:
            parts.append(_CATEGORIES[str(item)])
    return f"[{''.join(parts)}]"


def _width(items: Sequence[Any]) -> int:
    """How many codepoints the ranges of a class have."""
    return sum(x[1][1] - x[1][0] for x in items if str(x[0]) == "RANGE")


def _escaped(codepoint: int) -> str:
    return f"\\U{codepoint:08x}"


def _bits(number: int) -> Iterator[int]:
    """The places of the bits that are set, ascending."""
    while number:
        lowest = number & -number
        yield lowest.bit_length() - 1
        number ^= lowest
