"""The head of a request: request line and header fields, read as strictly as RFC 9112 allows.

What a proxy could read differently is rejected: line ends other than CRLF, folded lines, control
characters, and any doubt about where the body ends.
"""

import re
from dataclasses import dataclass

from service.errors import BadRequest

# A method is a token; the target has visible ASCII characters only (RFC 9112, 3).
_LINE = re.compile(rb"([-!#$%&'*+.^_`|~0-9A-Za-z]{1,32}) ([!-~]+) HTTP/(1\.[01])")
_TOKEN = re.compile(rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+")
# Everything that a value may contain: no control characters.
_TEXT = b"\t" + bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))
MAX_HEADERS = 256
_MOST_DIGITS = 20  # of a length
# The bytes of a request line besides its target, at most.
LINE_BYTES = 32 + len(b"  HTTP/1.1")
# Lines of one connection that are remembered, and the length of each, at most.
_MOST_KNOWN = 64
_MOST_KNOWN_BYTES = 256
_ONCE = (b"host", b"content-length", b"transfer-encoding")


@dataclass(slots=True)
class Head:
    """The head of a request; header names are in lower case."""

    method: str
    target: bytes
    version: str  # "1.0" or "1.1"
    headers: list[tuple[bytes, bytes]]
    named: dict[bytes, bytes]  # the values by name, the first of a repeated header
    length: int | None  # of the body, in bytes; None if it comes in chunks
    closes: bool  # whether the client wants the connection closed after the answer
    expects_continue: bool  # whether it waits for "100 Continue" before it sends the body


class HeadReader:
    """Reads the heads of one connection; a line that came before is not read again."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[bytes, bytes]] = {}
        self._line: bytes | None = None  # the last request line, and what it says
        self._asked: tuple[str, bytes, str] = ("", b"", "")

    def read(self, head: bytes) -> Head:
        """Read a head that ends with an empty line. Raises BadRequest."""
        first, *lines = head[:-4].split(b"\r\n")
        if first != self._line:
            self._asked = _read_line(first)
            self._line = first
        method, target, version = self._asked
        if len(self._known) > _MOST_KNOWN:
            self._known.clear()
        known = self._known
        headers = [known.get(line) or self._read_field(line) for line in lines]
        named = whole = dict(headers)
        if len(named) < len(headers):
            named, whole = dict(reversed(headers)), _joined(headers)
        if b"host" not in named and version == "1.1":
            raise malformed()
        connection, expect = whole.get(b"connection"), whole.get(b"expect")
        return Head(
            method,
            target,
            version,
            headers,
            named,
            _length(named.get(b"content-length"), named.get(b"transfer-encoding")),
            version == "1.0" or (connection is not None and _lists(connection, b"close")),
            version == "1.1" and expect is not None and _lists(expect, b"100-continue"),
        )

    def _read_field(self, line: bytes) -> tuple[bytes, bytes]:
        found = read_field(line)
        if len(line) <= _MOST_KNOWN_BYTES:
            self._known[line] = found
        return found


def _read_line(line: bytes) -> tuple[str, bytes, str]:
    """Method, target and version of a request line. Raises BadRequest."""
    found = _LINE.fullmatch(line)
    if found is None:
        raise malformed()
    method, target, version = found.groups()
    return method.decode("ascii"), target, version.decode("ascii")


def read_field(line: bytes) -> tuple[bytes, bytes]:
    """The name, in lower case, and the value of a header line. Raises BadRequest."""
    name, colon, value = line.partition(b":")
    if not colon or not _TOKEN.fullmatch(name) or value.translate(None, _TEXT):
        raise malformed()
    return name.lower(), value.strip(b" \t")


def malformed() -> BadRequest:
    """The error for what is not HTTP/1.1."""
    return BadRequest("the request is not HTTP/1.1")


def _joined(headers: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Values by name, those of a repeated header as one list. Raises BadRequest."""
    named: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in named and name in _ONCE:
            raise malformed()
        named[name] = named[name] + b"," + value if name in named else value
    return named


def _length(length: bytes | None, encoding: bytes | None) -> int | None:
    """The length of the body in bytes; None if it comes in chunks. Raises BadRequest."""
    if encoding is not None:
        if length is not None:
            # Request smuggling: a proxy may take for a request what is a body here, or vice versa.
            raise BadRequest("send either Content-Length or Transfer-Encoding, but not both")
        if encoding.lower() != b"chunked":
            raise malformed()
        return None
    if length is None:
        return 0
    if not length.isdigit() or len(length) > _MOST_DIGITS:
        raise malformed()
    return int(length)


def _lists(value: bytes, item: bytes) -> bool:
    """Whether a list has an item, in lower case."""
    value = value.lower()
    return item in value and item in [each.strip() for each in value.split(b",")]
