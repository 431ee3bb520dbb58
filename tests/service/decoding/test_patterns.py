"""Regular expressions as automata: exactly what `re.fullmatch` takes, within a budget."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.decoding.patterns import Budget, PatternError, compile_pattern
from tests.bundles import ALPHABET
from tests.service.regexes import accepts, all_texts, regexes

BUDGET = Budget(states=2048, steps=1_000_000)
CHARACTERS = "abd1é\n "
TEXTS = all_texts(CHARACTERS, 3)

# What Python's parser knows, in its forms.
PATTERNS = [
    *["", "a", "a|ab", "|a", "a|b|", "a+?", "a??b?", "(a|ab)(b|)", "a*?b", "(?:a|ba)*", "aQ|b"],
    *["a{,2}", "a{2}", "a{1,}", "a{0}", "{", "a{", "a{2", "a{x}", "(a{0}b)*", "x{0,9}", "a{1,2}?"],
    *[
        ".",
        "(?s).",
        "(?s:.)a",
        "[^a]",
        r"[^\n]",
        r"[^\W]",
        r"\d",
        r"\D",
        r"\s\S",
        r"\w\W",
        r"(?a)\w",
    ],
    *["[]a]", "[^]a]", "[a-]", "[-a]", r"[\w-]", r"[\]a]", r"[a\-b]", r"[\n]", r"[\b]", "[À-ÿ]"],
    *[r"\x61", r"\u0061", r"\U00000061", r"\N{LATIN SMALL LETTER A}", r"\141", r"\0", r"\t", r"\$"],
    *[
        "(?i)A",
        "(?i:A)b",
        "(?i)[A-Z]",
        "(?-i:a)",
        "(?i)[^A]",
        "(?i)É",
        "(?i:É)a",
        "(?ia:É)",
        "(?i)k",
    ],
    *[
        "(?P<x>a)b",
        "(?#c)a",
        "(?x) a b #c",
        "(?x: a b )",
        "(?:)",
        "()*",
        "(|a)+",
        "(a*)*",
        "(a?){3}",
    ],
    *["^a$", r"\Aa\Z", "^a|b$", "^(a|b$)", "(^a|b)1", "^^a$$", "(?:^)a", "^", "$", "(?m)^a$"],
    *[r"[^\s\S]*a", r"a|[^\s\S]+", "Q*a", "(a|b){2,3}1", "(?:a(?:b(?:1)?)?)?", "(a*b*)*1", "(.a)*"],
]


def same(pattern: str) -> None:
    automaton = compile_pattern(pattern, CHARACTERS, BUDGET)
    compiled = re.compile(pattern)
    found = [text for text in TEXTS if accepts(automaton, text)]
    assert found == [text for text in TEXTS if compiled.fullmatch(text)]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_takes_what_python_takes(pattern: str) -> None:
    same(pattern)


@settings(max_examples=300, deadline=None)
@given(pattern=regexes)
def test_any_pattern_takes_what_python_takes(pattern: str) -> None:
    same(pattern)


@settings(max_examples=300, deadline=None)
@given(pattern=st.text("ab1^$.|()[]{}*+?\\-,:=!<wdsbAZ\n", max_size=12))
def test_whatever_is_written_is_taken_as_python_takes_it_or_refused(pattern: str) -> None:
    try:
        compile_pattern(pattern, CHARACTERS, BUDGET)
    except PatternError:
        return
    same(pattern)


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        (r"(a)\1", "backreferences are not regular"),
        (r"(?P<x>a)(?P=x)", "backreferences are not regular"),
        (r"(a)?(?(1)b|c)", "conditional groups are not regular"),
        ("a(?=b)b", "lookaheads and lookbehinds"),
        ("(?!a).", "lookaheads and lookbehinds"),
        ("(?<=a)b", "lookaheads and lookbehinds"),
        ("b(?<!a)", "lookaheads and lookbehinds"),
        ("(?>a|ab)b", "atomic groups"),
        ("a++", "possessive repetitions"),
        (r"\bab", r"^, $, \A and \Z stand at the ends of a pattern only"),
        (r"a$\n", r"^, $, \A and \Z stand at the ends of a pattern only"),
        ("(^)*a", r"^, $, \A and \Z stand at the ends of a pattern only"),
        ("(?m)a$\n^b", r"^, $, \A and \Z stand at the ends of a pattern only"),
        ("a{99999999999999999999}", "too large a number"),
        ("(" * 500 + "a" + ")" * 500, "nested too deeply"),
        ("(a", "not a regular expression of Python's `re` at position 0"),
        ("a**", "not a regular expression of Python's `re` at position 2"),
        ("[b-a]", "not a regular expression of Python's `re` at position 1"),
        (r"\q", "not a regular expression of Python's `re` at position 0"),
        ("[[a]", "not a regular expression of Python's `re`"),  # warnings are errors here
    ],
)
def test_what_is_not_regular_or_not_supported_is_refused_with_the_reason(
    pattern: str, why: str
) -> None:
    with pytest.raises(PatternError, match=re.escape(why)):
        compile_pattern(pattern, CHARACTERS, BUDGET)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a{1000}){1000}",
        "((((a{10}){10}){10}){10}){10}",
        "(a|b)*a(a|b){30}",
        ".{0,5000}",
        "a{2049}",
        "(?:a|b|c|.){0,700}",
        "(.*a.{0,20}){9}",
    ],
)
def test_an_automaton_over_the_limit_is_refused(pattern: str) -> None:
    with pytest.raises(PatternError, match="at most 2048 states"):
        compile_pattern(pattern, ALPHABET, BUDGET)


def test_the_largest_automaton_is_let_through() -> None:
    assert len(compile_pattern(".{0,2047}", ALPHABET, BUDGET).transitions) == 2048
    assert len(compile_pattern("(a|b)*a(a|b){10}", ALPHABET, BUDGET).transitions) == 2048
    with pytest.raises(PatternError, match="at most 2047 states"):
        compile_pattern("(a|b)*a(a|b){10}", ALPHABET, Budget(2047, 1_000_000))


@pytest.mark.parametrize(
    "pattern", ["a{0,400}", "(a?){200}", "[a-z]*[b-y]*.{0,20}", "(a|b)*a(a|b){9}"]
)
def test_what_takes_too_many_steps_is_refused(pattern: str) -> None:
    """The budget is spent by building, linking and determinizing alike."""
    compile_pattern(pattern, ALPHABET, BUDGET)
    with pytest.raises(PatternError, match="too many steps"):
        compile_pattern(pattern, ALPHABET, Budget(2048, 800))


def test_wide_ranges_cost_what_they_take_to_look_at() -> None:
    ranges = [f"[{chr(0x4000 + i)}-\U0001ffff]" for i in range(20)]
    compile_pattern("".join(ranges[:1] * 20), ALPHABET, Budget(2048, 100_000))
    with pytest.raises(PatternError, match="too many steps"):
        compile_pattern("".join(ranges), ALPHABET, Budget(2048, 100_000))


@pytest.mark.parametrize("pattern", ["(){1000000}", "Q{1000000}", "((((){9999}){9999}){9999})*"])
def test_what_no_character_is_read_for_costs_nothing(pattern: str) -> None:
    automaton = compile_pattern(pattern, ALPHABET, Budget(states=10, steps=1000))
    assert automaton.class_of == {}
    assert automaton.accepting == ["Q" not in pattern]


def test_characters_that_no_pattern_tells_apart_are_one_class() -> None:
    automaton = compile_pattern("[a-z]+[0-9]", "abcxyz01Q", BUDGET)
    classes = automaton.class_of
    assert len({classes[x] for x in "abcxyz"}) == 1
    assert classes["0"] == classes["1"] != classes["a"]
    assert "Q" not in classes
