"""Random regular expressions, and automata run by hand."""

import itertools
from collections.abc import Sequence

from hypothesis import strategies as st

from service.decoding.patterns import Automaton

_ATOMS = ["a", "b", "c", ".", "[ab]", "[^a]", "[b-d]", r"\w", r"\S", "(?i:A)", "", "é"]
_REPEATS = ["*", "+", "?", "{2}", "{1,2}", "{2,}", "{0,3}", "*?", "+?", "??", "{,2}", "{0}"]


def _larger(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.lists(parts, min_size=2, max_size=3).map("".join),
        st.lists(parts, min_size=2, max_size=3).map(lambda x: f"(?:{'|'.join(x)})"),
        st.tuples(parts, st.sampled_from(_REPEATS)).map(lambda x: f"({x[0]}){x[1]}"),
    )


regexes: st.SearchStrategy[str] = st.recursive(st.sampled_from(_ATOMS), _larger, max_leaves=7)


def accepts(automaton: Automaton, text: str) -> bool:
    """Whether the automaton takes the whole text."""
    state = 0
    for character in text:
        class_ = automaton.class_of.get(character)
        if class_ is None or class_ not in automaton.transitions[state]:
            return False
        state = automaton.transitions[state][class_]
    return automaton.accepting[state]


def all_texts(characters: Sequence[str], longest: int) -> list[str]:
    """Every text of these characters, up to a length."""
    lengths = range(longest + 1)
    return ["".join(x) for n in lengths for x in itertools.product(characters, repeat=n)]
