"""A body in chunks (RFC 9112, 7.1): its data, many chunks at a time, within limits."""

import re

from service.errors import BodyTooLarge, HeadersTooLarge
from service.http.request_heads import MAX_HEADERS, malformed, read_field

# The line before a chunk: the size and an extension, which is ignored.
_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[\t\x20-\x7e\x80-\xff]{0,999})?[ \t]{0,9}\r\n")
_LINE_BEGUN = re.compile(rb"[0-9A-Fa-f]{0,16}(?:;[\t\x20-\x7e\x80-\xff]{0,999})?[ \t]{0,9}\r?")
_END = b"\r\n"
_END_BEGUN = re.compile(rb"\r?")


class ChunkedBody:
    """Reads one body. `max_chunks` None: any number; the trailers are checked and dropped."""

    def __init__(self, max_chunks: int | None, max_trailer_bytes: int) -> None:
        self.max_chunks = max_chunks
        self._max_trailer_bytes = max_trailer_bytes
        self._chunks = 0
        self._rest = 0  # bytes to come of the current chunk
        self._ends = False  # whether the line end after a chunk is due
        self._in_trailers = False
        self.is_complete = False

    def read(self, buffer: bytearray, most: int) -> tuple[bytes, int]:
        """Take the body's next bytes off the buffer, beginning `most` chunks at most.

        Returns their data and how many chunks began.

        Raises BadRequest, BodyTooLarge and HeadersTooLarge.
        """
        parts: list[bytearray] = []
        begun = at = 0
        while not self._in_trailers:
            if self._rest:
                part = buffer[at : at + self._rest]
                parts.append(part)
                at += len(part)
                self._rest -= len(part)
                self._ends = not self._rest
            if self._ends and buffer.startswith(_END, at):
                self._ends = False
                at += len(_END)
            if self._rest or self._ends or begun >= most or at == len(buffer):
                break
            line = _LINE.match(buffer, at)
            if line is None:
                break
            self._begin(int(line[1], 16))
            begun += 1
            at = line.end()
        del buffer[:at]
        if self._in_trailers:
            self._read_trailers(buffer)
        # Bytes after this turn's chunks are left for the next one.
        elif begun < most:
            self._check_rest(buffer)
        return b"".join(parts), begun

    def _begin(self, size: int) -> None:
        """Begin a chunk. Raises BodyTooLarge."""
        self._rest = size
        self._in_trailers = not size
        self._chunks += 1
        limit = self.max_chunks
        if limit is not None and size and self._chunks > limit:
            raise BodyTooLarge(f"a body may have at most {limit} chunks; send larger ones")

    def _check_rest(self, buffer: bytearray) -> None:
        """Raise BadRequest for bytes that cannot become what is due."""
        due = _END_BEGUN if self._ends else _LINE_BEGUN
        if due.fullmatch(buffer) is None:
            raise malformed()

    def _read_trailers(self, buffer: bytearray) -> None:
        """Take the trailers and the empty line after them off the buffer, if they are there."""
        # With the line end in front, the empty line is found even if there are no trailers.
        whole = _END + buffer
        end = whole.find(_END * 2)
        if (len(whole) if end < 0 else end) > self._max_trailer_bytes:
            limit = self._max_trailer_bytes
            raise HeadersTooLarge(f"the trailers of a body may have at most {limit} bytes")
        if whole.count(b"\n", 0, end if end > 0 else None) > MAX_HEADERS:
            raise HeadersTooLarge(f"a body may have at most {MAX_HEADERS} trailers")
        if end >= 0:
            for line in whole[:end].split(_END)[1:]:
                read_field(line)
            del buffer[: end + len(_END)]
            self.is_complete = True
