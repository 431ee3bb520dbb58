"""Combining marks in a row: bounded on both sides, found wherever they stand."""

import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.bundle import marks as module
from service.bundle import text as text_module
from service.bundle.marks import MAX_MARKS, TooManyMarks, check_marks, without_extra_marks
from service.bundle.text import Normalization, normalize

# U+0F73 is a starter that decomposes into two marks.
MARKS = "\u0301\u0323\u0344\u0f73\U0001e8d0"


def is_mark(char: str) -> bool:
    return all(map(unicodedata.combining, unicodedata.normalize("NFD", char)))


def longest_run(text: str) -> int:
    runs = re.findall("1+", "".join(str(int(is_mark(char))) for char in text))
    return max(map(len, runs), default=0)


texts = st.lists(
    st.one_of(
        st.text(max_size=4),
        st.builds(lambda mark, n: mark * n, st.sampled_from(MARKS), st.integers(1, 40)),
    ),
    max_size=5,
).map("".join)


def test_no_mark_lies_beyond_those_that_are_looked_for() -> None:
    assert not any(map(module._is_mark, map(chr, range(0x20000, 0x110000))))
    assert all(map(is_mark, MARKS))


@given(texts)
@example("a" + "\u0301" * 31)
@example("\u0301" * 30 + "a" + "\u0f73" * 30)
def test_more_marks_in_a_row_than_the_bound_are_refused_and_no_others(text: str) -> None:
    if longest_run(text) > MAX_MARKS:
        with pytest.raises(TooManyMarks) as caught:
            check_marks(text)
        place = caught.value.place
        assert longest_run(text[: place + 1]) == MAX_MARKS + 1 > longest_run(text[:place])
    else:
        check_marks(text)


def test_a_run_is_found_across_the_parts_that_are_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_PART", 8)
    for before in range(20):
        check_marks("a" * before + "\u0301" * MAX_MARKS + "b")
        with pytest.raises(TooManyMarks):
            check_marks("a" * before + "\u0301" * (MAX_MARKS + 1))


@given(texts, st.integers(0, 60))
def test_what_is_left_of_a_text_in_blocks_has_no_more_marks_than_the_bound(
    text: str, cut: int
) -> None:
    whole, dropped, _ = without_extra_marks(text)
    first, some, run = without_extra_marks(text[:cut])
    rest, others, _ = without_extra_marks(text[cut:], run)
    assert (first + rest, some + others) == (whole, dropped)
    assert longest_run(whole) <= MAX_MARKS
    assert len(whole) + dropped == len(text)
    if longest_run(text) <= MAX_MARKS:
        assert whole == text


@pytest.mark.parametrize(
    "rules", [Normalization(), Normalization(fold=True, lowercase=True, ascii_fold=True)]
)
@given(
    text=st.text(
        alphabet="ae\u03a3\u03c3\u0301\u0323\u1100\u1161\u11a8\u0dd9\u0dcf\u2013\r\n \u0345\xe9",
        max_size=80,
    )
)
def test_a_long_text_is_normalized_in_parts_as_it_is_as_a_whole(
    text: str, rules: Normalization
) -> None:
    if longest_run(text) > MAX_MARKS:
        return
    whole = normalize(text, rules)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_module, "_PART", 5)
        assert normalize(text, rules) == whole
