"""Constraints on a generated text: a pattern, a list of choices, or allowed characters.

S states, C classes of characters, V vocabulary, B rows. A constraint masks tokens: the sampler sees
only those after which the text can still become a match within its maximum length. It does not
condition the model: the log-probabilities stay as they are.
"""

import asyncio
import unicodedata
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np

from service.bundle.arrays import BoolArray, Int32Array, Int64Array
from service.bundle.marks import MAX_MARKS
from service.bundle.text import EOS_ID, UNK_ID, Normalization
from service.decoding.cache_budget import Cache, CacheBudget
from service.decoding.normal_form import normal_form
from service.decoding.patterns import Automaton, Budget, PatternError, compile_pattern
from service.errors import InvalidRequest, QueueFull
from service.settings import Settings

# Requests that may wait for their constraints while another one is compiled.
MAX_WAITING = 64
_FIRST_CHARACTER_ID = UNK_ID + 1
_FAR = np.iinfo(np.int32).max
_ENTRY_OVERHEAD_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Pattern:
    """The whole text matches a regular expression."""

    regex: str


@dataclass(frozen=True, slots=True)
class Choices:
    """The whole text is one of these choices."""

    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AllowedChars:
    """The text has only these characters."""

    characters: str | tuple[str, ...]  # some of them together, or each alone


Rule: TypeAlias = Pattern | Choices | AllowedChars


@dataclass(frozen=True, slots=True, eq=False)
class Constraint:
    """An automaton over the tokens of one vocabulary; every state but the last leads to a match.

    State 0 is the first, and state S, the dead one, is where tokens lead that are not allowed.
    """

    following: Int32Array  # [S + 1, C + 1] state after a class; class C is never allowed
    class_of: Int64Array  # [V]
    distance: Int32Array  # [S + 1] fewest tokens to a match, without eos
    is_closed: BoolArray  # [S + 1] whether a match ends there that nothing can follow

    @property
    def shortest(self) -> int:
        """Fewest tokens of a match, without eos."""
        return int(self.distance[0])

    @property
    def cells(self) -> int:
        """Its size: states · classes."""
        return self.following.size

    @property
    def size_bytes(self) -> int:
        """Memory of its tables."""
        tables = (self.following, self.class_of, self.distance, self.is_closed)
        return sum(table.nbytes for table in tables)

    def allowed(self, states: Int64Array, left: Int64Array) -> BoolArray:
        """The tokens [B, V] after which `left` - 1 more [B] are enough for a match.

        There is one at least, where `left` is positive and not less than the distance of the state.
        """
        distance = self.distance[self.following[states]]  # [B, C + 1]
        allowed = (distance < left[:, None])[:, self.class_of]  # [B, V]
        allowed[:, EOS_ID] = self.distance[states] == 0
        return allowed

    def after(self, states: Int64Array, tokens: Int64Array) -> Int64Array:
        """The states [B] after a token each, [B]."""
        return self.following[states, self.class_of[tokens]].astype(np.int64)

    def after_one(self, state: int, token: int) -> int:
        """The state after a token."""
        return int(self.following[state, self.class_of[token]])

    def accepts(self, state: int) -> bool:
        """Whether a text that led to this state matches."""
        return bool(self.distance[state] == 0)

    def matches(self, tokens: Sequence[int]) -> bool:
        """Whether a text of these tokens matches as a whole."""
        state = 0
        for token in tokens:
            state = self.after_one(state, token)
        return self.accepts(state)

    @classmethod
    def of(cls, automaton: Automaton, tokens: Sequence[str]) -> "Constraint | None":
        """The automaton without the states from which no match is reached; None: nothing matches.

        `tokens` is the vocabulary, of which all from id 4 on are characters.
        """
        distances = _distances(automaton)
        if 0 not in distances:
            return None
        new = {state: i for i, state in enumerate(sorted(distances))}
        dead, never = len(new), max(automaton.class_of.values(), default=-1) + 1
        following = np.full((dead + 1, never + 1), dead, np.int32)
        for state, row in new.items():
            ways = automaton.transitions[state]
            for class_, after in ways.items():
                following[row, class_] = new.get(after, dead)
        distance = np.array([*(distances[state] for state in new), _FAR], np.int32)
        class_of = np.full(len(tokens), never, np.int64)
        for token in range(_FIRST_CHARACTER_ID, len(tokens)):
            class_of[token] = automaton.class_of.get(tokens[token], never)
        is_closed = (distance == 0) & (following == dead).all(axis=1)
        return cls(following, class_of, distance, is_closed)


def _distances(automaton: Automaton) -> dict[int, int]:
    """By state, the fewest characters to an accepting one; states without a way are left out."""
    before: list[set[int]] = [set() for _ in automaton.transitions]
    for state, ways in enumerate(automaton.transitions):
        for after in ways.values():
            before[after].add(state)
    distances = {state: 0 for state, accepts in enumerate(automaton.accepting) if accepts}
    pending = deque(distances)
    while pending:
        state = pending.popleft()
        for earlier in before[state]:
            if earlier not in distances:
                distances[earlier] = distances[state] + 1
                pending.append(earlier)
    return distances


def trie(texts: Sequence[str]) -> Automaton:
    """The automaton that accepts exactly these texts."""
    class_of: dict[str, int] = {}
    transitions: list[dict[int, int]] = [{}]
    accepting = [False]
    for text in texts:
        state = 0
        for character in text:
            class_ = class_of.setdefault(character, len(class_of))
            if class_ not in transitions[state]:
                transitions[state][class_] = len(transitions)
                transitions.append({})
                accepting.append(False)
            state = transitions[state][class_]
        accepting[state] = True
    return Automaton(class_of, transitions, accepting)


def check_size(rule: Rule, settings: Settings) -> None:
    """Raise InvalidRequest if a rule is too long."""
    match rule:
        case Pattern(regex):
            _check_length("pattern", len(regex), settings.max_pattern_chars)
        case Choices(texts):
            limit = settings.max_choices
            if len(texts) > limit:
                detail = f"too many choices; at most {limit} are allowed"
                raise InvalidRequest.of_option("choices", detail)
            _check_length("choices", sum(map(len, texts)), settings.max_choices_chars)
        case AllowedChars(allowed):
            _check_length("allowed_chars", sum(map(len, allowed)), settings.max_choices_chars)


def normalized_rule(rule: Rule, rules: Normalization) -> Rule:
    """A rule about texts as the model writes them. Raises InvalidRequest.

    A pattern is composed and no more: in its syntax case and punctuation have meanings.
    """
    match rule:
        case Pattern(regex):
            return Pattern(unicodedata.normalize("NFC", regex)) if rules.nfc else rule
        case Choices(texts):
            return Choices(tuple(normal_form(text, rules, "choices") for text in texts))
        case AllowedChars(str(together)):
            return AllowedChars(normal_form(together, rules, "allowed_chars"))
        case AllowedChars(alone):
            for i, each in enumerate(alone):
                if len(each) > MAX_MARKS or len(unicodedata.normalize("NFC", each)) != 1:
                    raise InvalidRequest.of_option("allowed_chars", "it must be one character", i)
            return AllowedChars(tuple(normal_form(each, rules) for each in alone))


def compile_rule(rule: Rule, tokens: Sequence[str], settings: Settings) -> Constraint:
    """The constraint of a rule over a vocabulary. Raises InvalidRequest."""
    characters = tokens[_FIRST_CHARACTER_ID:]
    match rule:
        case Pattern(regex):
            option, nothing = "pattern", "no text of the model's characters matches it"
            budget = Budget(settings.max_pattern_states, settings.max_pattern_steps)
            try:
                automaton = compile_pattern(regex, characters, budget)
            except PatternError as error:
                raise InvalidRequest.of_option(option, str(error)) from error
        case Choices(texts):
            option, nothing = "choices", "there is none"
            _check_characters(texts, characters)
            automaton = trie(texts)
        case AllowedChars(allowed):
            option, nothing = "allowed_chars", "the model writes none of these characters"
            wanted = set("".join(allowed))
            class_of = dict.fromkeys((x for x in characters if x in wanted), 0)
            automaton = Automaton(class_of, [{0: 0} if class_of else {}], [bool(class_of)])
    constraint = Constraint.of(automaton, tokens)
    if constraint is None:
        raise InvalidRequest.of_option(option, nothing)
    return constraint


def _check_length(option: str, length: int, limit: int) -> None:
    if length > limit:
        raise InvalidRequest.of_option(option, f"too many characters; at most {limit} are allowed")


def _check_characters(texts: Sequence[str], characters: Sequence[str]) -> None:
    known = set(characters)
    for i, text in enumerate(texts):
        if not known.issuperset(text):
            place = next(place for place, x in enumerate(text) if x not in known)
            detail = f"the model does not write the character at position {place}"
            raise InvalidRequest.of_option("choices", detail, i)


class ConstraintCompiler:
    """Constraints of one vocabulary: compiled in a thread, one at a time, and kept for a while.

    What is kept is bounded by its bytes, in a budget that other models' patterns may share; the
    least recently used is forgotten first.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        settings: Settings,
        budget: CacheBudget,
        normalization: Normalization = Normalization(),  # noqa: B008 (frozen)
    ) -> None:
        self._tokens = tokens
        self._normalization = normalization
        self._settings = settings
        self._compiling = asyncio.Lock()
        self._waiting = 0
        self._kept: Cache[Rule, Constraint] = Cache(budget)

    async def compiled(self, rule: Rule) -> Constraint:
        """The constraint of a rule. Raises InvalidRequest and QueueFull."""
        check_size(rule, self._settings)
        rule = normalized_rule(rule, self._normalization)
        known = self._kept.get(rule)
        if known is not None:
            return known
        if self._waiting >= MAX_WAITING:
            raise QueueFull(
                f"{self._waiting} requests wait for their patterns; at most {MAX_WAITING} may wait",
                headers={"Retry-After": "1"},
            )
        self._waiting += 1
        try:
            async with self._compiling:
                known = self._kept.get(rule)
                if known is not None:  # compiled for another request meanwhile
                    return known
                compiling = partial(compile_rule, rule, self._tokens, self._settings)
                constraint = await asyncio.to_thread(compiling)
                self._kept.put(rule, constraint, _kept_bytes(rule, constraint))
                return constraint
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Empty the cache and keep nothing more: the model has ended."""
        self._kept.close()


def _kept_bytes(rule: Rule, constraint: Constraint) -> int:
    match rule:
        case Pattern(regex):
            characters = len(regex)
        case Choices(texts):
            characters = sum(map(len, texts)) + 50 * len(texts)
        case AllowedChars(allowed):
            characters = sum(map(len, allowed))
    return 4 * characters + constraint.size_bytes + _ENTRY_OVERHEAD_BYTES
