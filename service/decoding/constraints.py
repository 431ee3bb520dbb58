"""Constraints on a generated text: a pattern, choices, allowed characters, words that must occur.

S states, C classes of tokens, V vocabulary, B rows. A constraint masks tokens: the sampler sees
only those after which the text can still become a match within its maximum length. It does not
condition the model: the log-probabilities stay as they are.
"""

import asyncio
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import numpy as np

from service.bundle.arrays import BoolArray, Int32Array, Int64Array
from service.bundle.text import EOS_ID, Normalization
from service.decoding.cache_budget import Cache, CacheBudget
from service.decoding.normal_form import normal_form
from service.decoding.patterns import Budget, PatternError, compile_pattern
from service.decoding.spelling import Writing
from service.decoding.token_automata import FAR, TokenAutomaton, TooLargeError
from service.decoding.unit_automata import containing, only, trie
from service.errors import InvalidRequest, QueueFull
from service.settings import Settings

# Requests that may wait for their constraints while another one is compiled.
MAX_WAITING = 64
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
    """The text has only these characters, or symbols where symbols are written."""

    characters: str | tuple[str, ...]  # some of them together, or each alone


@dataclass(frozen=True, slots=True)
class MustContain:
    """Each of these words occurs somewhere in the text, in any order.

    A word may stand within a longer word, and words may overlap. Where symbols are written, it is
    symbols, whole and in a row.
    """

    words: tuple[str, ...]


OneRule: TypeAlias = Pattern | Choices | AllowedChars | MustContain


@dataclass(frozen=True, slots=True)
class AllOf:
    """The text obeys each of these rules: two or more."""

    rules: tuple[OneRule, ...]


Rule: TypeAlias = OneRule | AllOf


def all_of(rules: Sequence[OneRule]) -> Rule | None:
    """One rule for all of these; None where there is none."""
    return AllOf(tuple(rules)) if len(rules) > 1 else next(iter(rules), None)


@dataclass(frozen=True, slots=True, eq=False)
class Constraint:
    """An automaton over the tokens of one vocabulary; every state but the last leads to a match.

    State 0 is the first, and state S, the dead one, is where tokens lead that are not allowed.
    """

    following: Int32Array  # [S + 1, C + 1] state after a class; class C is never allowed
    class_of: Int64Array  # [V]
    distance: Int32Array  # [S + 1] fewest tokens to a match, without eos
    is_closed: BoolArray  # [S + 1] whether a match ends there that nothing can follow
    # [S + 1] fewest tokens of words that must still come; None where there are no such words
    missing: Int32Array | None = None

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
        tables = (self.following, self.class_of, self.distance, self.is_closed, self.missing)
        return sum(table.nbytes for table in tables if table is not None)

    def allowed(self, states: Int64Array, left: Int64Array) -> BoolArray:
        """The tokens [B, V] after which `left` - 1 more [B] are enough for a match.

        There is one at least, where `left` is positive and not less than the distance of the state.
        """
        distance = self.distance[self.following[states]]  # [B, C + 1]
        allowed = (distance < left[:, None])[:, self.class_of]  # [B, V]
        allowed[:, EOS_ID] = self.distance[states] == 0
        return allowed

    def after(self, states: Int64Array, tokens: Int64Array) -> Int64Array:
        """The states after a token each; both have one shape."""
        return self.following[states, self.class_of[tokens]].astype(np.int64)

    def missing_after(self, states: Int64Array) -> Int32Array | None:
        """Fewest tokens of words that are still to come after each token, [B, V]."""
        if self.missing is None:
            return None
        missing: Int32Array = self.missing[self.following[states]][:, self.class_of]
        missing[:, EOS_ID] = self.missing[states]
        return missing

    def after_one(self, state: int, token: int) -> int:
        """The state after a token."""
        return int(self.following[state, self.class_of[token]])

    def shortest_after(self, tokens: Sequence[int]) -> int | None:
        """Fewest further tokens of a match that begins with these; None: no match does."""
        state = 0
        for token in tokens:
            state = self.after_one(state, token)
        return None if self.distance[state] == FAR else int(self.distance[state])

    def accepts(self, state: int) -> bool:
        """Whether a text that led to this state matches."""
        return bool(self.distance[state] == 0)

    def matches(self, tokens: Sequence[int]) -> bool:
        """Whether a text of these tokens matches as a whole."""
        return self.shortest_after(tokens) == 0

    @classmethod
    def of(cls, automaton: TokenAutomaton) -> "Constraint | None":
        """The automaton without states from which no match is reached; None: nothing matches."""
        distances = automaton.distances()
        kept = np.flatnonzero(distances < FAR)
        if distances[0] == FAR:
            return None
        dead = len(kept)
        number_of = np.full(len(distances), dead, np.int32)
        number_of[kept] = np.arange(dead)
        following = np.full((dead + 1, automaton.following.shape[1]), dead, np.int32)
        following[:dead] = number_of[automaton.following[kept]]
        distance = np.append(distances[kept], np.int32(FAR))
        is_closed = (distance == 0) & (following == dead).all(axis=1)
        missing = automaton.missing
        if missing is not None:
            missing = np.append(missing[kept], np.int32(FAR))
        return cls(following, automaton.class_of, distance, is_closed, missing)


def by_constraint(
    places: Iterable[tuple[int, Constraint | None]],
) -> list[tuple[Constraint, Int64Array]]:
    """Each constraint, and the places that have it."""
    constraints: dict[int, Constraint] = {}
    found: dict[int, list[int]] = {}
    for place, constraint in places:
        if constraint is not None:
            constraints[id(constraint)] = constraint
            found.setdefault(id(constraint), []).append(place)
    return [(constraints[key], np.array(each)) for key, each in found.items()]


def check_size(rule: Rule, settings: Settings) -> None:
    """Raise InvalidRequest if a rule is too long."""
    match rule:
        case Pattern(regex):
            _check_length("pattern", len(regex), settings.max_pattern_chars)
        case Choices(texts):
            _check_texts("choices", "choices", texts, settings)
        case AllowedChars(allowed):
            _check_length("allowed_chars", sum(map(len, allowed)), settings.max_choices_chars)
        case MustContain(words):
            _check_texts("must_contain", "words", words, settings)
        case AllOf(rules):
            for each in rules:
                check_size(each, settings)


def _check_texts(option: str, name: str, texts: Sequence[str], settings: Settings) -> None:
    limit = settings.max_choices
    if len(texts) > limit:
        raise InvalidRequest.of_option(option, f"too many {name}; at most {limit} are allowed")
    _check_length(option, sum(map(len, texts)), settings.max_choices_chars)


def _check_length(option: str, length: int, limit: int) -> None:
    if length > limit:
        raise InvalidRequest.of_option(option, f"too many characters; at most {limit} are allowed")


def normalized_rule(rule: Rule, rules: Normalization, writing: Writing) -> Rule:
    """A rule, or several, about texts as the model writes them. Raises InvalidRequest.

    A pattern is composed and no more: in its syntax case and punctuation have meanings.
    """
    if isinstance(rule, AllOf):
        return AllOf(tuple(_normalized(each, rules, writing) for each in rule.rules))
    return _normalized(rule, rules, writing)


def _normalized(rule: OneRule, rules: Normalization, writing: Writing) -> OneRule:
    # Only a whole text loses the blanks at its ends.
    inside = rules.model_copy(update={"strip": False})
    match rule:
        case Pattern(regex):
            return Pattern(unicodedata.normalize("NFC", regex)) if rules.nfc else rule
        case Choices(texts):
            return Choices(tuple(normal_form(text, rules, "choices") for text in texts))
        case MustContain(words):
            return MustContain(tuple(normal_form(word, inside, "must_contain") for word in words))
        case AllowedChars(str(together)):
            return AllowedChars(normal_form(together, inside, "allowed_chars"))
        case AllowedChars(alone):
            for i, each in enumerate(alone):
                if not writing.is_unit(each):
                    detail = f"it must be one {writing.unit}"
                    raise InvalidRequest.of_option("allowed_chars", detail, i)
            return AllowedChars(tuple(normal_form(each, inside) for each in alone))


def compile_rule(rule: Rule, writing: Writing, settings: Settings) -> Constraint:
    """The constraint of a rule over a vocabulary. Raises InvalidRequest."""
    first, *others = rule.rules if isinstance(rule, AllOf) else (rule,)
    whole, constraint = _joined(None, first, writing, settings)
    for each in others:
        whole, constraint = _joined(whole, each, writing, settings)
    return constraint


def _joined(
    before: TokenAutomaton | None, rule: OneRule, writing: Writing, settings: Settings
) -> tuple[TokenAutomaton, Constraint]:
    """The automaton of a rule and of those before it. Raises InvalidRequest."""
    option, nothing = _option(rule, writing)
    try:
        automaton = _token_automaton(rule, writing, settings)
        if before is not None:
            automaton = before.and_also(automaton, settings.max_pattern_states)
            nothing = "no text obeys it together with the other rules"
    except (PatternError, TooLargeError) as error:
        raise InvalidRequest.of_option(option, str(error)) from error
    constraint = Constraint.of(automaton)
    if constraint is None:
        raise InvalidRequest.of_option(option, nothing)
    return automaton, constraint


def _option(rule: OneRule, writing: Writing) -> tuple[str, str]:
    """The option of a rule, and what is wrong where no text obeys it."""
    match rule:
        case Pattern():
            return "pattern", "no text of the model's characters matches it"
        case Choices():
            return "choices", "there is none"
        case AllowedChars():
            return "allowed_chars", f"the model writes none of these {writing.unit}s"
        case MustContain():
            return "must_contain", "no text of the model contains them"


def _token_automaton(rule: OneRule, writing: Writing, settings: Settings) -> TokenAutomaton:
    """The automaton of one rule. Raises InvalidRequest, PatternError and TooLargeError."""
    budget = Budget(settings.max_pattern_states, settings.max_pattern_steps)
    spelling = writing.units
    match rule:
        case Pattern(regex):
            spelling = writing.characters
            automaton = compile_pattern(regex, spelling.alphabet, budget)
        case Choices(texts):
            automaton = trie(_known_units("choices", texts, writing))
        case AllowedChars(allowed):
            together = (allowed,) if isinstance(allowed, str) else allowed
            wanted = {unit for text in together for unit in writing.cut(text)}
            automaton = only(unit for unit in spelling.alphabet if unit in wanted)
        case MustContain(texts):
            words = _known_units("must_contain", texts, writing)
            for i, word in enumerate(words):
                if not word:
                    raise InvalidRequest.of_option("must_contain", "a word must not be empty", i)
            automaton = containing(words, spelling.alphabet, budget)
    found = TokenAutomaton.of(automaton, spelling)
    return replace(found, missing=found.distances()) if isinstance(rule, MustContain) else found


def _known_units(option: str, texts: Sequence[str], writing: Writing) -> list[tuple[str, ...]]:
    """The units of texts. Raises InvalidRequest for one that the model does not write."""
    known = set(writing.units.alphabet)
    cut = [writing.cut(text) for text in texts]
    for i, units in enumerate(cut):
        if not known.issuperset(units):
            place = next(place for place, x in enumerate(units) if x not in known)
            detail = f"the model does not write the {writing.unit} at position {place}"
            raise InvalidRequest.of_option(option, detail, i)
    return cut


class ConstraintCompiler:
    """Constraints of one vocabulary: compiled in a thread, one at a time, and kept for a while.

    What is kept is bounded by its bytes, in a budget that other models' patterns may share; the
    least recently used is forgotten first.
    """

    def __init__(
        self,
        writing: Writing,
        settings: Settings,
        budget: CacheBudget,
        normalization: Normalization = Normalization(),  # noqa: B008 (frozen)
    ) -> None:
        self._writing = writing
        self._normalization = normalization
        self._settings = settings
        self._compiling = asyncio.Lock()
        self._waiting = 0
        self._kept: Cache[Rule, Constraint] = Cache(budget)

    async def compiled(self, rule: Rule) -> Constraint:
        """The constraint of a rule. Raises InvalidRequest and QueueFull."""
        check_size(rule, self._settings)
        rule = normalized_rule(rule, self._normalization, self._writing)
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
                compiling = partial(compile_rule, rule, self._writing, self._settings)
                constraint = await asyncio.to_thread(compiling)
                self._kept.put(rule, constraint, _kept_bytes(rule, constraint))
                return constraint
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Empty the cache and keep nothing more: the model has ended."""
        self._kept.close()


def _kept_bytes(rule: Rule, constraint: Constraint) -> int:
    return 4 * _kept_chars(rule) + constraint.size_bytes + _ENTRY_OVERHEAD_BYTES


def _kept_chars(rule: Rule) -> int:
    match rule:
        case Pattern(regex):
            return len(regex)
        case Choices(texts) | MustContain(texts):
            return sum(map(len, texts)) + 50 * len(texts)
        case AllowedChars(allowed):
            return sum(map(len, allowed))
        case AllOf(rules):
            return sum(map(_kept_chars, rules))
