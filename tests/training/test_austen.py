"""A tiny database of R, made up here, becomes the files of `austen`."""

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.datasets import austen
from training.datasets.errors import DatasetError
from training.datasets.table import DATASETS

CHARSXP_ASCII, CHARSXP_UTF8, CHARSXP_LATIN1 = 0x40009, 0x8009, 0x4009
STRSXP, INTSXP = 0x10, 0x0D


def charsxp(line: str) -> bytes:
    data = line.encode()
    return struct.pack(">ii", CHARSXP_ASCII if line.isascii() else CHARSXP_UTF8, len(data)) + data


def serialized(body: bytes, *, count: int, flags: int = STRSXP) -> bytes:
    header = b"X\n" + struct.pack(">iii", 3, 0x40201, 0x30500) + struct.pack(">i", 5) + b"UTF-8"
    return header + struct.pack(">ii", flags, count) + body


def vector(lines: Sequence[str]) -> bytes:
    return serialized(b"".join(map(charsxp, lines)), count=len(lines))


def stored(block: bytes) -> bytes:
    return struct.pack(">i", len(block)) + zlib.compress(block)


def novel(chapters: int, heading: str = "Chapter") -> list[str]:
    lines = ["A TITLE", "", "By Somebody", ""]
    for number in range(1, chapters + 1):
        lines += [f"{heading} {number}", "", f"What happened {number}.", ""]
    return lines


@given(st.lists(st.lists(st.text(max_size=20), max_size=5), max_size=4))
def test_lines_of_every_vector_of_a_database_are_read(vectors: list[list[str]]) -> None:
    data = b"".join(stored(vector(lines)) for lines in vectors)

    assert [austen.strings(block) for block in austen.blocks(data)] == vectors


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"\0\0\0\x04none", "not deflated"),
        (struct.pack(">i", 7) + zlib.compress(b"eight..."), "the length it states"),
        (stored(b"long enough to cut")[:-3], "the length it states"),
    ],
)
def test_a_damaged_database_is_refused(data: bytes, complaint: str) -> None:
    with pytest.raises(DatasetError, match=complaint):
        list(austen.blocks(data))


@pytest.mark.parametrize(
    ("block", "complaint"),
    [
        (b"A\n3\n", "not in the XDR format"),
        (serialized(b"", count=0, flags=INTSXP), "something else than lines"),
        (serialized(struct.pack(">ii", CHARSXP_LATIN1, 1) + b"\xe9", count=1), "not UTF-8"),
        (serialized(struct.pack(">ii", 9, -1), count=1), "not UTF-8"),  # R's NA
    ],
)
def test_an_object_that_is_no_text_is_refused(block: bytes, complaint: str) -> None:
    with pytest.raises(DatasetError, match=complaint):
        austen.strings(block)


def test_whole_chapters_are_held_out_of_every_twenty() -> None:
    parts = austen.split("\n".join(novel(43)))

    assert [f"Chapter {n}\n" in parts["valid"] for n in (9, 10, 11, 30)] == [0, 1, 0, 1]
    assert parts["test"] == (
        "Chapter 20\n\nWhat happened 20.\n\nChapter 40\n\nWhat happened 40.\n\n"
    )
    assert parts["train"].startswith("A TITLE\n")
    assert parts["train"].endswith("What happened 43.\n")
    assert sum(map(len, parts.values())) == len("\n".join(novel(43)))


def test_chapters_are_counted_through_volumes_and_in_roman_numbers() -> None:
    lines = ["VOLUME I", *("CHAPTER X",) * 9, "Chapter X", "the tenth", "CHAPTER I"]

    assert austen.split("\n".join(lines))["valid"] == "Chapter X\nthe tenth\n"


def test_the_builder_writes_three_files_without_the_editors_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = [*novel(20, "CHAPTER"), "A NOTE ON THE TEXT", "", "Of the edition."]
    data = stored(vector(first)) + stored(vector(novel(21)))
    monkeypatch.setattr(austen, "debian_files", lambda *_: {austen.FILE: data})

    lines = DATASETS["austen"](tmp_path)

    text = {path.stem: path.read_text() for path in tmp_path.iterdir()}
    assert text["valid"].count("What happened 10.") == 2
    assert text["test"] == (
        "CHAPTER 20\n\nWhat happened 20.\n\n\n\nChapter 20\n\nWhat happened 20.\n\n"
    )
    assert "edition" not in text["train"]
    assert sorted(lines) == sorted(f"{name}.txt: {len(text[name]):,} characters" for name in text)
