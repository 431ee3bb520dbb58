"""The lines of standard input in batches; a batch never waits for more of a pipe."""

import codecs
import os
import select
import stat
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from service.endpoints.line_reader import Line, LineSplitter

# Longer lines are reported and skipped.
MAX_LINE_BYTES = 8 * 2**20
_READ_BYTES = 2**20
_UTF_16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


@dataclass(frozen=True, slots=True)
class InputLine:
    """A line's text, or what is wrong with it."""

    number: int  # from 1
    text: str
    error: str | None = None


class InputLines:
    """The lines that come from a file descriptor."""

    def __init__(self, descriptor: int, name: str | None = None) -> None:
        self._descriptor = descriptor
        self.name = name or _name_of(descriptor)
        self._splitter = LineSplitter(MAX_LINE_BYTES)
        self._decoder: codecs.IncrementalDecoder | None = None  # of UTF-16
        self._head: bytes | None = b""  # the first bytes, until the encoding is known
        self._ready: deque[InputLine] = deque()
        self._ended = False

    def batches(self, most_lines: int, most_bytes: int) -> Iterator[list[InputLine]]:
        """Batches of available lines, within limits; a line over the limit is a batch by itself.

        A batch goes out as soon as it has a line: only lines that can be read without waiting
        are added.
        """
        while self._fill(most_lines):
            batch = [self._ready.popleft()]
            size = len(batch[0].text)
            while self._ready and len(batch) < most_lines:
                size += len(self._ready[0].text)
                if size > most_bytes:
                    break
                batch.append(self._ready.popleft())
            yield batch

    def _fill(self, most_lines: int) -> bool:
        """Wait for a line and read whatever else is available; False at the end."""
        while not self._ended and len(self._ready) < most_lines:
            if self._ready and not select.select([self._descriptor], [], [], 0)[0]:
                break
            data = os.read(self._descriptor, _READ_BYTES)
            self._ended = not data
            self._ready += map(self._read, self._lines(data))
        return bool(self._ready)

    def _lines(self, data: bytes) -> list[Line]:
        """The lines that these bytes complete; no bytes mean the end of the input."""
        is_end = not data
        if self._head is not None:
            data = self._head + data
            if not is_end and data in {mark[:1] for mark in _UTF_16}:
                self._head = data
                return []
            self._head = None
            encoding = _UTF_16.get(data[:2])
            if encoding is not None:
                self._decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
        if self._decoder is not None:
            # Half a character is kept as it is, and its line is refused later.
            data = self._decoder.decode(data).encode("utf-8", "surrogatepass")
        lines = self._splitter.feed(data)
        return lines + self._splitter.end() if is_end else lines

    def _read(self, line: Line) -> InputLine:
        if line.content is None:
            return InputLine(line.number, "", f"longer than {MAX_LINE_BYTES:,} bytes")
        try:
            return InputLine(line.number, line.content.decode("utf-8"))
        except UnicodeDecodeError as error:
            hint = "is it Windows-1252? Then put `iconv -f WINDOWS-1252 -t UTF-8 |` before this"
            what = f"byte {error.start + 1} is not UTF-8; {hint}"
            return InputLine(line.number, "", what)


def _name_of(descriptor: int) -> str:
    """A file's path, if the system reports it."""
    try:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return str(Path(f"/proc/self/fd/{descriptor}").readlink())
    except OSError:
        pass
    return "standard input"
