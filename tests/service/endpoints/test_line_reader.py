"""Bytes in any pieces: the same lines, and the same normal form."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bundle.marks import TooManyMarks
from service.bundle.text import Normalization, normalize
from service.endpoints.line_reader import Line, LineSplitter, TextSplitter


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


@given(
    lines=st.lists(st.binary(max_size=12).map(lambda x: x.replace(b"\n", b"\r")), max_size=8),
    ends=st.booleans(),
    cuts=st.lists(st.integers(0, 120), max_size=12),
)
def test_any_pieces_give_the_same_lines(lines: list[bytes], ends: bool, cuts: list[int]) -> None:
    data = b"\n".join(lines) + (b"\n" if ends and lines else b"")
    splitter = LineSplitter(8)
    found = [line for piece in pieces(data, cuts) for line in splitter.feed(piece)]
    found += splitter.end()
    wanted = data.split(b"\n")
    if wanted[-1] == b"":
        wanted.pop()
    assert found == [
        Line(i, x.removesuffix(b"\r") if len(x) <= 8 else None) for i, x in enumerate(wanted, 1)
    ]


def test_nothing_is_kept_of_a_line_that_is_too_long() -> None:
    splitter = LineSplitter(10)
    for _ in range(1000):
        assert splitter.feed(b"x" * 1000) == []
        assert len(splitter._held) == 0
    assert splitter.feed(b"\nab\n") == [Line(1, None), Line(2, b"ab")]


AWKWARD = (
    "ae\u0301\u0308o\u0302 \u1100\u1161\u11a8\u0915\u093c\u00e9\u03a3\u03b1\u03a3\u03c2\r\n"
    "\u212bIi\u0307\U0001f600\u0301"
)


@given(
    text=st.text(st.sampled_from(AWKWARD), max_size=80),
    cuts=st.lists(st.integers(0, 300), max_size=20),
    rules=st.builds(
        Normalization, newlines=st.booleans(), lowercase=st.booleans(), ascii_fold=st.booleans()
    ),
)
def test_the_parts_normal_forms_are_the_wholes(
    text: str, cuts: list[int], rules: Normalization
) -> None:
    splitter = TextSplitter(200, rules)
    parts = [splitter.feed(piece) for piece in pieces(text.encode(), cuts)] + [splitter.end()]
    assert "".join(parts) == text
    assert "".join(normalize(part, rules) for part in parts) == normalize(text, rules)


DENSE = st.characters(exclude_categories=["Cs", "Zs"], exclude_characters="\n")


# Letters that meet where a mark between them is dropped.
MEETING = st.sampled_from("a\u1100\u1161\u0301\u0dd9\u0dcf\u0130\u0f73\u0f71")


@given(
    text=st.text(DENSE, min_size=150, max_size=400) | st.text(MEETING, min_size=150, max_size=400),
    cuts=st.lists(st.integers(0, 1600), min_size=4, max_size=20),
    rules=st.sampled_from([Normalization(lowercase=True), Normalization(ascii_fold=True)]),
)
def test_text_without_blanks_is_cut_where_nothing_composes(
    text: str, cuts: list[int], rules: Normalization
) -> None:
    splitter = TextSplitter(60, rules)
    try:
        parts = [splitter.feed(piece) for piece in pieces(text.encode(), cuts)] + [splitter.end()]
    except ValueError:
        return  # no place for a cut; it says so
    try:
        whole = normalize(text, rules)
    except TooManyMarks:
        return
    assert "".join(normalize(part, rules) for part in parts) == whole


def test_many_line_ends_in_parts_are_searched_once() -> None:
    splitter = TextSplitter(1000, Normalization())
    text = "x" + "\r \r" * 400
    parts = [splitter.feed(bytes([byte])) for byte in text.encode()] + [splitter.end()]
    assert "".join(parts) == text
    rules = Normalization()
    assert "".join(normalize(part, rules) for part in parts) == normalize(text, rules)


def test_what_is_held_is_bounded() -> None:
    splitter = TextSplitter(100, Normalization())
    for _ in range(200):
        splitter.feed(("中文" * 50).encode())
        assert len(splitter._held) <= 300
    with pytest.raises(ValueError, match="no place"):
        TextSplitter(100, Normalization()).feed(("\u0301" * 400).encode())
    with pytest.raises(UnicodeDecodeError):
        TextSplitter(100, Normalization()).feed(b"a\xff")
    splitter = TextSplitter(100, Normalization())
    splitter.feed("é".encode()[:1])
    with pytest.raises(UnicodeDecodeError):
        splitter.end()


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_a_byte_order_mark_before_the_first_line_is_no_text(size: int) -> None:
    data = "\ufeffone\n\ufefftwo\n".encode()
    lines, text = LineSplitter(100), TextSplitter(100, Normalization())
    read: list[bytes | None] = []
    whole = ""
    for i in range(0, len(data), size):
        read += [line.content for line in lines.feed(data[i : i + size])]
        whole += text.feed(data[i : i + size])
    assert read == [b"one", "\ufefftwo".encode()]
    assert whole + text.end() == "one\n\ufefftwo\n"
