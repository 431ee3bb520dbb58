"""A limit on combining marks in a row, since sorting n of them takes n² steps.

Unicode's canonical ordering compares each mark of a run with those before it, and Python holds its
lock meanwhile: 100,000 marks stop a process for many seconds. Written languages have no more than
ten in a row; the Stream-Safe Text Format allows 30 (UAX 15, 13).
"""

import unicodedata
from functools import cache

import numpy as np

from service.bundle.arrays import BoolArray, Int64Array

MAX_MARKS = 30
# No code point from here on is a mark; a test checks that.
_CODE_POINTS = 0x20000
# Characters examined in one call: little memory, and other threads get their turn.
_PART = 1 << 14


class TooManyMarks(ValueError):
    """A text with too many marks in a row; `place` is the first one over the limit."""

    def __init__(self, place: int) -> None:
        super().__init__(
            f"more than {MAX_MARKS} combining marks in a row, which no language writes, end at "
            f"position {place}; at most {MAX_MARKS} are allowed"
        )
        self.place = place


def check_marks(text: str) -> None:
    """Raises TooManyMarks."""
    # A run that is too long has a mark at one of these places.
    step = MAX_MARKS + 1
    if not _are_marks(text[MAX_MARKS::step]).any():
        return
    run = 0
    for start in range(0, len(text), _PART):
        places = _places_in_runs(text[start : start + _PART], run)
        run = int(places[-1])
        if places.max() > MAX_MARKS:
            raise TooManyMarks(start + int((places > MAX_MARKS).argmax()))


def without_extra_marks(text: str, run: int = 0) -> tuple[str, int, int]:
    """The text without the marks over the limit, their number, and the run at its end.

    `run`: marks in a row before the text.
    """
    if text.isascii():
        return text, 0, 0 if text else run
    kept: list[str] | None = None  # parts so far, once something has been dropped
    dropped = 0
    for start in range(0, len(text), _PART):
        part = text[start : start + _PART]
        places = _places_in_runs(part, run)
        run = int(places[-1])
        extra = places > MAX_MARKS
        if extra.any():
            kept = [text[:start]] if kept is None else kept
            dropped += int(np.count_nonzero(extra))
            stays = zip(part, (~extra).tolist(), strict=True)
            part = "".join(char for char, is_kept in stays if is_kept)
        if kept is not None:
            kept.append(part)
    return text if kept is None else "".join(kept), dropped, min(run, MAX_MARKS)


def _places_in_runs(text: str, run: int) -> Int64Array:
    """Each character's place in its run of marks, from 1; 0 if it is not a mark."""
    places = np.arange(len(text))
    others = np.where(_are_marks(text), -1 - run, places)
    since: Int64Array = places - np.maximum.accumulate(others)
    return since


def _are_marks(text: str) -> BoolArray:
    # surrogatepass: a lone surrogate is not a mark.
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    marks: BoolArray = _table()[np.minimum(codes, _CODE_POINTS - 1)]
    return marks


@cache
def _table() -> BoolArray:
    """Whether canonical ordering may move a code point (a non-starter).

    A few starters count, too, because they decompose to non-starters only.
    """
    return np.fromiter((_is_mark(chr(code)) for code in range(_CODE_POINTS)), np.bool_)


def _is_mark(char: str) -> bool:
    if unicodedata.combining(char):
        return True
    # The first test alone takes a fifth of the time.
    return bool(unicodedata.decomposition(char)) and all(
        map(unicodedata.combining, unicodedata.normalize("NFD", char))
    )
