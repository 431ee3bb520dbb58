"""Bytes cut into chunks of whole lines, in bounded memory.

Where a chunk ends depends only on where it begins, so a run that is resumed at the end of a chunk
makes the same chunks as one that was never interrupted.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from service.batch.errors import DamagedFile

CHUNK_BYTES = 2**17
# Longer lines are reported and skipped.
MAX_LINE_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Chunk:
    """Whole lines, or the place of one line that was too long."""

    first_line: int  # from 1
    lines: int
    content: bytes | None  # with line ends; None for a line that was too long
    end: int  # offset of the next chunk


def chunks(
    read: Callable[[], bytes],
    *,
    offset: int = 0,
    line: int = 1,
    chunk_bytes: int = CHUNK_BYTES,
    max_line_bytes: int = MAX_LINE_BYTES,
) -> Iterator[Chunk]:
    """Cut the bytes that `read` returns into chunks, until it returns none.

    `offset` and `line` belong to the first byte. If `read` raises DamagedFile, the whole lines
    before the damage are yielded first, and then it is raised here.
    """
    cutter = _Cutter(read, max_line_bytes)
    while True:
        cutter.fill(chunk_bytes)
        size, is_too_long = cutter.cut(chunk_bytes)
        if is_too_long:
            offset += cutter.drop_line()
            yield Chunk(line, 1, None, offset)
            line += 1
        elif size:
            content = cutter.take(size)
            lines = content.count(b"\n") + (not content.endswith(b"\n"))
            offset += size
            yield Chunk(line, lines, content, offset)
            line += lines
        elif cutter.damage is not None:
            raise cutter.damage
        else:
            return


class _Cutter:
    def __init__(self, read: Callable[[], bytes], max_line_bytes: int) -> None:
        self._read = read
        self._max_line_bytes = max_line_bytes
        self._held = bytearray()
        self._ended = False
        self.damage: DamagedFile | None = None

    def fill(self, chunk_bytes: int) -> None:
        """Read until the chunk's last line is complete, unless that line is too long."""
        searched = chunk_bytes - 1
        most = chunk_bytes + self._max_line_bytes
        while not self._ended and len(self._held) <= most:
            if self._held.find(b"\n", searched) >= 0:
                return
            searched = max(searched, len(self._held))
            self._more()

    def cut(self, chunk_bytes: int) -> tuple[int, bool]:
        """The size of the next chunk, and whether it is a single line that is too long."""
        held = self._held
        end = held.find(b"\n", chunk_bytes - 1) + 1
        if not end and self._ended:
            # Before damage, an incomplete last line does not count.
            end = len(held) if self.damage is None else held.rfind(b"\n") + 1
        last = held.rfind(b"\n", 0, max(min(end or len(held), chunk_bytes) - 1, 0)) + 1
        if not end:
            length = len(held) - last
            if length <= self._max_line_bytes:
                return 0, False
        else:
            length = end - last - (held[end - 1] == 10)
        if length > self._max_line_bytes:
            return (last, False) if last else (0, True)
        return end, False

    def take(self, size: int) -> bytes:
        """Take bytes from the front."""
        content = bytes(self._held[:size])
        del self._held[:size]
        return content

    def drop_line(self) -> int:
        """Drop the first line without keeping it in memory; returns its length."""
        dropped = 0
        while True:
            end = self._held.find(b"\n") + 1
            if end:
                del self._held[:end]
                return dropped + end
            dropped += len(self._held)
            self._held.clear()
            if self._ended:
                return dropped
            self._more()

    def _more(self) -> None:
        try:
            data = self._read()
        except DamagedFile as damage:
            self.damage = damage
            data = b""
        self._ended = not data
        self._held += data
