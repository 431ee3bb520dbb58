"""Searches with constraints: each finds what it would find alone, among the targets that match."""

import itertools
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle.text import EOS_ID, SPECIAL_TOKENS, Normalization
from service.decoding.constraints import (
    AllOf,
    AllowedChars,
    Choices,
    Constraint,
    MustContain,
    OneRule,
    Pattern,
    Rule,
    compile_rule,
    normalized_rule,
)
from service.decoding.search import Search
from service.decoding.spelling import Writing
from service.errors import InvalidRequest
from service.scheduling.encoder_decoder import EncoderDecoderRunner
from service.settings import Settings
from tests.bundles import Tokenization, tiny_tokenizer
from tests.fakes import FakeEncoderDecoderSession
from tests.service.search_reference import alone, beam_searches, found, sample_searches

LETTERS = "abcdef"  # ids 4 to 9, the whole target vocabulary of a fake session
WRITING = Writing.of_characters((*SPECIAL_TOKENS, *LETTERS))
LONGEST = 4
TEXTS = ["".join(x) for n in range(LONGEST + 1) for x in itertools.product(LETTERS, repeat=n)]


def obeys(text: str, rule: Rule) -> bool:
    """As anybody would say it, of texts of characters."""
    match rule:
        case Pattern(regex):
            return re.fullmatch(regex, text) is not None
        case Choices(texts):
            return text in texts
        case AllowedChars(characters):
            return set(text) <= set(characters)
        case MustContain(words):
            return all(word in text for word in words)
        case AllOf(rules):
            return all(obeys(text, each) for each in rules)


@dataclass(frozen=True)
class Ruled:
    """A constraint, and all targets of at most LONGEST tokens that match."""

    constraint: Constraint
    wanted: frozenset[tuple[int, ...]]

    @classmethod
    def of(cls, rule: Rule) -> "Ruled":
        texts = (text for text in TEXTS if obeys(text, rule))
        wanted = frozenset(tuple(4 + LETTERS.index(x) for x in text) for text in texts)
        return cls(compile_rule(rule, WRITING, Settings()), wanted)


RULED = [
    Ruled.of(rule)
    for rule in (
        Pattern("a|b?c+"),
        Pattern("[a-d]*"),
        Pattern("(?:ab|ba|f)+c?"),
        Choices(("abc", "abd", "b", "ffff", "")),
        AllowedChars("acf"),
        AllOf((Pattern("[a-c]*"), AllowedChars("bcde"))),
    )
]


def ruled(search: Search, rule: Ruled | None) -> tuple[Search, Ruled | None]:
    if rule is None:
        return search, None
    forced = next(x for x in sorted(rule.wanted, key=len, reverse=True) if len(x) <= LONGEST)
    forced = forced[: len(search.forced)] if search.position == 0 else ()
    return replace(search, constraint=rule.constraint, forced=forced, max_tokens=LONGEST + 1), rule


searches = st.builds(
    ruled, st.one_of(beam_searches(), sample_searches()), st.sampled_from([None, *RULED])
)


@settings(max_examples=60, deadline=None)
@given(
    arrivals=st.lists(st.tuples(st.integers(0, 3), searches), min_size=1, max_size=6),
    levels=st.sampled_from([None, None, 2]),
)
def test_each_search_finds_alone_what_it_finds_beside_others(
    arrivals: list[tuple[int, tuple[Search, Ruled | None]]], levels: int | None
) -> None:
    """Constrained, otherwise constrained or free, they join and leave at different steps."""
    runner = EncoderDecoderRunner(FakeEncoderDecoderSession(levels=levels), name="fake")
    for steps_before, (search, _) in arrivals:
        for _ in range(steps_before):
            assert all(error is None for _, error in runner.run())
        runner.admit([search])
    while not runner.free:
        assert all(error is None for _, error in runner.run())
    for _, (search, rule) in arrivals:
        wanted = None if rule is None else rule.wanted
        own = FakeEncoderDecoderSession(levels=levels)
        assert found(search) == alone(own, search, wanted)
        for hypothesis in search.best():
            assert wanted is None or hypothesis.tokens[:-1] in wanted


def test_a_constraint_may_ask_for_a_text_that_goes_round() -> None:
    rule = compile_rule(Choices(("ab" * 20,)), WRITING, Settings())
    search = Search(np.array([4, 5, EOS_ID], np.uint16), 2, 50, constraint=rule)
    runner = EncoderDecoderRunner(FakeEncoderDecoderSession(), name="fake")
    runner.admit([search])
    while not runner.free:
        runner.run()
    (hypothesis,) = search.best()
    assert hypothesis.tokens == (*((4, 5) * 20), EOS_ID)
    assert hypothesis.finish_reason == "stop"


# --- tokens that are not characters ---------------------------------------------------------------


def obeys_in_symbols(text: str, rule: OneRule) -> bool:
    """All rules but patterns are about whole symbols."""
    symbols = text.split()
    match rule:
        case Choices(texts):
            return symbols in [x.split() for x in texts]
        case AllowedChars(allowed):
            return set(symbols) <= set(allowed)
        case MustContain(words):
            return all(f" {' '.join(x.split())} " in f" {' '.join(symbols)} " for x in words)
        case Pattern():
            return obeys(text, rule)


KINDS: list[tuple[Tokenization, int, list[OneRule]]] = [
    (
        "bpe",
        2,
        [
            Pattern("(?:a|the)? ?[a-r ]*"),
            Pattern(" *a.{0,3}"),
            Choices(("a cat", "the", "at", "", " a")),
            AllowedChars("aeht "),
            MustContain(("at", " ")),
            MustContain(("he", "e")),
        ],
    ),
    (
        "whitespace",
        4,
        [
            Pattern("A[AH]( [A-Z]{1,2})*"),
            Pattern("(?:.. ?)*"),
            Choices(("AA AH", "B", "EH  B ", "")),
            AllowedChars(("AA", "+")),
            MustContain(("AA", "B B")),
            MustContain(("AA B", "B AA")),
        ],
    ),
]


@pytest.mark.parametrize(
    ("tokenization", "longest", "rule"),
    [(kind, longest, rule) for kind, longest, rules in KINDS for rule in rules],
)
def test_tokens_match_if_the_text_that_they_spell_does(
    tokenization: Tokenization, longest: int, rule: OneRule
) -> None:
    tokenizer = tiny_tokenizer(tokenization)
    constraint = compile_rule(rule, Writing.of(tokenizer, tokenization), Settings())
    says = obeys_in_symbols if tokenization == "whitespace" else obeys
    lengths = set()
    for count in range(longest + 1):
        for ids in itertools.product(range(4, len(tokenizer)), repeat=count):
            matches = says(tokenizer.join([tokenizer.tokens[i] for i in ids]), rule)
            assert constraint.matches(ids) == matches
            lengths |= {count} if matches else set()
    assert constraint.shortest == min(lengths)


def test_rules_about_symbols_are_checked_in_symbols() -> None:
    tokenizer = tiny_tokenizer("whitespace")
    writing = Writing.of(tokenizer, "whitespace")
    with pytest.raises(InvalidRequest, match="the symbol at position 1"):
        compile_rule(Choices(("AA XX",)), writing, Settings())
    with pytest.raises(InvalidRequest, match="must be one symbol"):
        normalized_rule(AllowedChars(("AA B",)), Normalization(), writing)
    together = compile_rule(AllowedChars("AA B"), writing, Settings())
    assert together.matches(tokenizer.encode("B AA B").tolist())
    assert not together.matches(tokenizer.encode("B AH").tolist())


def test_a_table_over_very_many_tokens_is_refused() -> None:
    tokens = (*SPECIAL_TOKENS, *(chr(0x4E00 + i) for i in range(5000)))
    words = "".join(tokens[4:2104])
    with pytest.raises(InvalidRequest, match="kinds of tokens"):
        compile_rule(Choices((words,)), Writing.of_characters(tokens), Settings())
