"""Texts with blanks: parts of one document each, which sources and targets hold whole."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle.infill import BLANK, EDGE, MARKS, SEAM, infill_of
from service.bundle.text import SPECIAL_TOKENS, UNK_ID, Vocabulary
from tests.training.helpers import FABLE, split_of
from training.config import SpansConfig
from training.data.corpus import Split
from training.data.spans import BlankedText, SpanDrawing

UNKNOWN = SPECIAL_TOKENS[UNK_ID]
# The alphabet of a document, with a line end, a mark in the text and a character that is unknown.
VOCAB = Vocabulary([*SPECIAL_TOKENS, *MARKS, "\n", " ", "'", "a", "b", "c", "d", "e"])
DOCUMENTS = st.lists(
    st.text(f"\n ab'cde{BLANK}{SEAM}?", min_size=1, max_size=80), min_size=1, max_size=4
)
OPTIONS = st.builds(
    SpansConfig,
    context=st.integers(8, 20),
    max_chars=st.integers(1, 9),
    geometric_p=st.floats(0.05, 1.0),
    uniform_share=st.floats(0.0, 0.5),
    word_share=st.floats(0.0, 0.5),
    max_blanks=st.integers(1, 4),
    several_share=st.floats(0.0, 0.9),
    short_share=st.floats(0.0, 0.9),
)


def split(texts: list[str]) -> Split:
    return split_of([VOCAB.encode(text).tolist() for text in texts])


def read(text: str) -> str:
    """A document as the model may read it: no mark in it, and no unknown character."""
    known = "".join(char if char in VOCAB.tokens else UNKNOWN for char in text)
    return "".join(UNKNOWN if char in MARKS else char for char in known)


def draw(
    texts: list[str], options: SpansConfig, seed: int = 0, count: int = 5
) -> list[BlankedText]:
    drawing = SpanDrawing(split(texts), VOCAB.tokens, options)
    return list(drawing.texts(count, np.random.default_rng(seed)))


@given(DOCUMENTS, OPTIONS, st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_a_text_with_blanks_is_part_of_one_document(
    texts: list[str], options: SpansConfig, seed: int
) -> None:
    documents = [read(text) for text in texts]
    for found in draw(texts, options, seed):
        assert any(found.whole in document for document in documents)
        assert len(found.pieces) == len(found.texts) + 1 <= options.max_blanks + 1
        assert all(1 <= len(text) <= options.max_chars for text in found.texts)
        assert all(1 <= len(piece) <= options.context for piece in found.pieces[1:-1])
        assert max(len(found.pieces[0]), len(found.pieces[-1])) <= options.context


@given(DOCUMENTS, OPTIONS, st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_an_edge_is_an_end_of_a_document_or_of_a_line(
    texts: list[str], options: SpansConfig, seed: int
) -> None:
    lines = [read(text) for text in texts]
    lines += [line for text in lines for line in text.split("\n")]
    starts, stops = [f"\n{x}" for x in lines], [f"{x}\n" for x in lines]
    for found in draw(texts, options, seed):
        if found.begins:
            assert any(f"\n{found.whole}" in start for start in starts + [f"\n{x}" for x in texts])
        if found.ends:
            assert any(f"{found.whole}\n" in stop for stop in stops)


@given(DOCUMENTS, OPTIONS, st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_source_and_target_hold_every_piece_and_every_text_once(
    texts: list[str], options: SpansConfig, seed: int
) -> None:
    infill = infill_of(
        context=options.context, max_blanks=options.max_blanks, max_chars=options.max_chars
    )
    for found in draw(texts, options, seed):
        source = infill.source(found.pieces, begins=found.begins, ends=found.ends)
        assert len(source) <= options.max_source_tokens
        after, before = source.split(SEAM)
        first, *rest = after.split(BLANK)
        assert first == ""
        rest[-1] = rest[-1].removesuffix(EDGE if found.ends else "")
        assert (before.removeprefix(EDGE if found.begins else ""), *rest) == found.pieces
        target = infill.target(found.texts)
        assert len(target) <= options.max_target_tokens
        assert infill.texts(target) == found.texts


def test_a_mark_in_a_text_is_an_unknown_character() -> None:
    infill = infill_of(context=9, max_blanks=2, max_chars=9)
    source = infill.source((f"a{BLANK}", f"{SEAM}b{EDGE}"), begins=False, ends=False)
    assert source == f"{BLANK}{UNKNOWN}b{UNKNOWN}{SEAM}a{UNKNOWN}"
    assert infill.target((f"a{BLANK}", "b")) == f"a{UNKNOWN}{BLANK}b"


def test_the_context_counts_an_edge_and_is_cut_on_the_far_side() -> None:
    infill = infill_of(context=4, max_blanks=1, max_chars=9)
    assert (
        infill.source(("abc", "xyz"), begins=True, ends=True) == f"{BLANK}xyz{EDGE}{SEAM}{EDGE}abc"
    )
    assert infill.source(("abcd", "wxyz"), begins=True, ends=True) == f"{BLANK}wxyz{SEAM}abcd"
    assert infill.source(("abcde", "vwxyz"), begins=False, ends=False) == f"{BLANK}vwxy{SEAM}bcde"


def test_sources_and_targets_are_shown_as_people_write_them() -> None:
    infill = infill_of(context=9, max_blanks=2, max_chars=9)
    source = infill.source(("I am ", " hungry, ", "!"), begins=True, ends=True)
    assert infill.readable(source) == "I am ___ hungry, ___!"
    assert infill.readable(infill.target(("very", "yes"))) == "very … yes"


def test_the_same_generator_draws_the_same_texts_and_another_draws_others() -> None:
    options = SpansConfig()
    assert draw([FABLE], options, 1) == draw([FABLE], options, 1)
    assert draw([FABLE], options, 1) != draw([FABLE], options, 2)


def lengths(options: SpansConfig) -> Counter[int]:
    """The lengths of 2000 blanks in a text without words."""
    texts = draw(["," * 4000], options, count=2000)
    return Counter(len(text) for found in texts for text in found.texts)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_lengths_follow_the_stated_distribution(share: float) -> None:
    options = SpansConfig(
        max_chars=10, geometric_p=0.25, uniform_share=share, word_share=0.0, several_share=0.0
    )
    found = lengths(options)
    assert set(found) == set(range(1, 11))
    # Of a geometric length that is cut at n: (1 - (1 - p) ** n) / p.
    expected = share * 5.5 + (1 - share) * (1 - 0.75**10) / 0.25
    assert sum(x * n for x, n in found.items()) / 2000 == pytest.approx(expected, abs=0.2)


def test_whole_words_are_blanks_where_they_are_asked_for() -> None:
    options = SpansConfig(uniform_share=0.0, word_share=0.99, several_share=0.0, geometric_p=1.0)
    texts = draw(["abc de'd ee " * 40], options, count=200)
    words = Counter(text for found in texts for text in found.texts if text != " ")
    assert {"abc", "de'd", "ee"} <= set(words)
    assert sum(words[x] for x in ("abc", "de'd", "ee")) / sum(words.values()) > 0.95
