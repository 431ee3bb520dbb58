"""Texts and pages cut into pieces: nothing is lost, and all of it in one pass."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.endpoints.pieces import joined, pieces_of


def short(text: str) -> bool:
    return len(text) <= 12


def sources(text: str, *, html: bool = False) -> list[str]:
    return [piece.text for piece in pieces_of(text, short, html=html) if piece.is_source]


def unchanged(text: str, *, html: bool) -> str:
    pieces = list(pieces_of(text, short, html=html))
    return joined(pieces, iter([x.text for x in pieces if x.is_source]), html=html)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("one\ntwo", ["one", "two"]),
        ("No one. Two is.", ["No one.", "Two is."]),
        ("One.Two three.", ["One.Two", "three."]),  # no blank, so no end of a sentence
        ('He: "No." "Yes!" So.', ['He: "No."', '"Yes!"', "So."]),
        ("A fox. B", ["A fox. B"]),  # it fits as it is
        ("ab\u3002cdefghijkl\u3002", ["ab\u3002", "cdefghijkl\u3002"]),
        ("a bb ccc dddd eeeee", ["a bb ccc", "dddd eeeee"]),
        ("x" * 20, ["x" * 20]),
        ("a " + "x" * 20 + " b", ["a", "x" * 20, "b"]),
    ],
)  # fmt: skip
def test_lines_sentences_and_words_are_pieces(text: str, pieces: list[str]) -> None:
    assert sources(text) == pieces


@pytest.mark.parametrize(
    ("page", "pieces"),
    [
        ("<p>One</p>", ["One"]),
        ("One<br>two<BR/>three", ["One", "two", "three"]),
        ("a &lt; b &amp; c", ["a < b & c"]),
        ("<b>a</b>, <i>b</i> -", ["a", "b"]),
        ("x <3 y", ["x <3 y"]),
        ("<p>\n  one\n  two </p>", ["one two"]),
        ('<a title="1 > 0">one</a>', ["one"]),
        ("<!-- <p>no</p> -->one", ["one"]),
        ("<!doctype html><p>one", ["one"]),
        ("<script>if (a<b) x('</p>');</script>one", ["one"]),
        ("<pre>no <b>no</b></pre>one", ["one"]),
        ('<span translate="no">no <span>no</span> no</span>one', ["one"]),
        ('<p class="a notranslate">no</p>one', ["one"]),
        ("<p class=notranslate>no</p>one", ["one"]),
        ('<p class="no-notranslate notranslate-x">one', ["one"]),
        ("<p title=it's>one</p><p>two</p>", ["one", "two"]),
        ("<area translate=no>one", ["one"]),
        ("<!-->one<!--->two", ["one", "two"]),
        ('<img translate="no">one', ["one"]),
        ("one<p two", ["one"]),
        ("<script>no", []),
        ("&#" + "9" * 5000 + ";", []),
    ],
)
def test_texts_between_tags_are_pieces(page: str, pieces: list[str]) -> None:
    assert sources(page, html=True) == pieces


ALPHABET = st.sampled_from(
    [*"ab .!?<>/&\n\r\"'=;", "<b>", "</b>", "\u3002", "&amp;", "<!--", "-->"]
)


@settings(max_examples=200, deadline=None)
@given(st.lists(ALPHABET, max_size=40).map("".join))
def test_what_is_not_translated_stays(text: str) -> None:
    assert unchanged(text, html=False) == text
    assert all(piece.strip() for html in (False, True) for piece in sources(text, html=html))
    # Of a page its white space and its references can be written otherwise, once.
    once = unchanged(text, html=True)
    assert unchanged(once, html=True) == once


HOSTILE = (
    *("<", "<a ", "<a \"x' ", "<!--", "<script>", "<a<", "&", "&#1", ". ", '."', "\u3002"),
    *("<b translate=no>", " class=", "\n", " ", "x"),
)


@pytest.mark.parametrize(("unit", "html"), [("<b>", True), (" \n", False), ("<br>, ", True)])
def test_what_stays_is_one_piece_however_much_there_is_of_it(unit: str, html: bool) -> None:
    (piece,) = pieces_of(unit * 10_000, short, html=html)
    assert piece == (unit * 10_000, False)


@pytest.mark.parametrize("unit", HOSTILE)
def test_a_page_that_somebody_made_for_it_does_not_take_long(unit: str) -> None:
    text = unit * (300_000 // len(unit))
    began = time.process_time()
    for html in (False, True):
        # As many as one request may have.
        for count, _ in enumerate(pieces_of(text, short, html=html)):
            if count > 20_000:
                break
    assert time.process_time() - began < 2.0
