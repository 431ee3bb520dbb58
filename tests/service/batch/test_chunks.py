"""Bytes cut into chunks of whole lines."""

from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.batch.chunks import Chunk, chunks
from service.batch.errors import DamagedFile

MOST = 12
DATA = st.lists(st.sampled_from([b"\n", b"a", b"bcd", b"x" * 9, b"\r\n"]), max_size=40).map(
    b"".join
)
CUTS = st.lists(st.integers(1, 7), min_size=1)


def reader(data: bytes, sizes: Iterable[int], damage: bool = False) -> Callable[[], bytes]:
    """`read` in pieces of these sizes, again and again."""
    pieces, sizes, at, i = [], list(sizes), 0, 0
    while at < len(data):
        size = sizes[i % len(sizes)]
        pieces.append(data[at : at + size])
        at, i = at + size, i + 1
    left = iter(pieces)

    def read() -> bytes:
        piece = next(left, b"")
        if damage and not piece:
            raise DamagedFile("cut off")
        return piece

    return read


def cut(data: bytes, sizes: Iterable[int] = (5,), offset: int = 0, line: int = 1) -> list[Chunk]:
    read = reader(data[offset:], sizes)
    return list(chunks(read, offset=offset, line=line, chunk_bytes=8, max_line_bytes=MOST))


def lines_of(data: bytes) -> list[bytes]:
    *ended, rest = data.split(b"\n")
    return [*ended, rest] if rest else ended


@given(DATA, CUTS)
def test_every_line_is_in_one_chunk_in_its_place(data: bytes, sizes: list[int]) -> None:
    found: list[bytes | None] = []
    for chunk in cut(data, sizes):
        assert chunk.first_line == len(found) + 1
        found += [None] if chunk.content is None else lines_of(chunk.content)
        assert chunk.first_line + chunk.lines == len(found) + 1
    assert found == [line if len(line) <= MOST else None for line in lines_of(data)]


@given(DATA, CUTS)
def test_a_run_resumed_after_any_chunk_makes_the_same_chunks(data: bytes, sizes: list[int]) -> None:
    whole = cut(data)
    for place, chunk in enumerate(whole, 1):
        assert cut(data, sizes, chunk.end, chunk.first_line + chunk.lines) == whole[place:]


def test_before_damage_whole_lines_are_given_and_half_a_line_is_not() -> None:
    made = chunks(reader(b"one\ntwo\nthr", [4], damage=True), chunk_bytes=8, max_line_bytes=MOST)
    assert next(made).content == b"one\ntwo\n"
    with pytest.raises(DamagedFile):
        next(made)


def test_an_endless_line_is_not_kept_in_memory() -> None:
    given_out = 0

    def read() -> bytes:
        nonlocal given_out
        given_out += 1
        return b"x" * 1000 if given_out < 1000 else b""

    (chunk,) = chunks(read, chunk_bytes=8, max_line_bytes=MOST)
    assert (chunk.content, chunk.lines, chunk.end) == (None, 1, 999_000)
