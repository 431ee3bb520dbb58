"""The texts of several blanks, compared with every target that there is."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle.infill import BLANK, MARKS, infill_of
from service.bundle.text import EOS_ID, SPECIAL_TOKENS
from service.decoding.blank_constraint import BlankTexts, blank_constraint
from service.decoding.constraints import AllowedChars, Constraint, Pattern, Rule, compile_rule
from service.decoding.spelling import Writing
from service.settings import Settings

TOKENS = (*SPECIAL_TOKENS, *MARKS, "a", "b")
INFILL = infill_of(context=8, max_blanks=3, max_chars=4)
WRITING = Writing.of_characters(TOKENS)
RULES: dict[str, Rule | None] = {
    "any": None,
    "a's": Pattern("a+"),
    "b at the end": Pattern("a*b"),
    "two": Pattern("..|b"),
    "only b": AllowedChars("b"),
}


def made(count: int, least: int, most: int, rule: Rule | None) -> Constraint | None:
    compiled = None if rule is None else compile_rule(rule, WRITING, Settings())
    return blank_constraint(TOKENS, INFILL, count, BlankTexts(least, most, compiled))


def wanted(count: int, least: int, most: int, rule: Rule | None) -> set[str]:
    """Every target, from its definition."""
    texts = ("".join(x) for n in range(least, most + 1) for x in product("ab", repeat=n))
    if rule is not None:
        plain = compile_rule(rule, WRITING, Settings())
        texts = (x for x in texts if plain.matches([TOKENS.index(char) for char in x]))
    return {BLANK.join(x) for x in product(list(texts), repeat=count)}


def walked(constraint: Constraint, most_tokens: int) -> set[str]:
    """Every target that a search can write within its limit, token by token."""
    found, living = set(), [(0, "")]
    for written in range(most_tokens):
        after = []
        for state, text in living:
            left = np.array([most_tokens - 1 - written])
            (allowed,) = constraint.allowed(np.array([state]), left)
            assert allowed.any()
            if allowed[EOS_ID]:
                found.add(text)
            after += [
                (constraint.after_one(state, token), text + TOKENS[token])
                for token in np.flatnonzero(allowed).tolist()
                if token != EOS_ID
            ]
        living = after
    assert living == []
    return found


@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 2), st.sampled_from(sorted(RULES)))
@settings(max_examples=40, deadline=None)
def test_a_search_can_write_every_allowed_target_and_no_other(
    count: int, least: int, more: int, name: str
) -> None:
    most = min(3, least + more) if count > 1 else least + more
    least = min(least, most)
    constraint = made(count, least, most, RULES[name])
    expected = wanted(count, least, most, RULES[name])
    if constraint is None:
        assert expected == set()
        return
    assert walked(constraint, count * (most + 1)) == expected


@pytest.mark.parametrize("rule", [Pattern("a{5}"), Pattern("b")])
def test_where_no_text_has_the_length_there_is_no_constraint(rule: Rule) -> None:
    assert made(1, 2, 4, rule) is None


def test_a_rule_never_allows_a_mark() -> None:
    constraint = made(2, 1, 2, Pattern(f".+|{BLANK}+"))
    assert constraint is not None
    assert walked(constraint, 6) == wanted(2, 1, 2, None)
