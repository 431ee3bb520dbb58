"""The head of a request: request line and header fields, read as strictly as RFC 9112 allows.

What a proxy could read differently is rejected: line ends other than CRLF, folded lines, control
characters, and any doubt about where the body ends.
"""

import re
from dataclasses import dataclass

from service.errors import BadRequest

# A method is a token; the target has visible ASCII characters only (RFC 9112, 3).
_LINE = re.compile(rb"([-!#$%&'*+.^_`|~0-9A-Za-z]{1,32}) ([!-~]+) HTTP/1\.([01])")
_TOKEN = re.compile(rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+")
# Everything that a value may contain: no control characters.
_TEXT = b"\t" + bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))
MAX_HEADERS = 256
_MOST_DIGITS = 20  # of a length
# The bytes of a request line besides its target, at most.
LINE_BYTES = 32 + len(b"  HTTP/1.1")
# Header names as clients write them, in lower case: a look-up costs less than to check a token.
_NAMES = {
    spelled: name
    for name in (
        *(b"accept", b"accept-encoding", b"accept-language", b"authorization", b"cache-control"),
        *(b"connection", b"content-length", b"content-type", b"cookie", b"expect", b"host"),
        *(b"origin", b"referer", b"traceparent", b"transfer-encoding", b"user-agent"),
        *(b"x-api-key", b"x-forwarded-for", b"x-request-id"),
    )
    for spelled in (name, name.title())
}
_ONCE = (b"host", b"content-length", b"transfer-encoding")


@dataclass(slots=True)
class Head:
    """The head of a request; header names are in lower case."""

    method: str
    target: bytes
    version: str  # "1.0" or "1.1"
    headers: list[tuple[bytes, bytes]]
    length: int | None  # of the body, in bytes; None if it comes in chunks
    closes: bool  # whether the client wants the connection closed after the answer
    expects_continue: bool  # whether it waits for "100 Continue" before it sends the body


def read_head(head: bytes) -> Head:
    """Read a head that ends with an empty line. Raises BadRequest."""
    lines = head[:-4].split(b"\r\n")
    line = _LINE.fullmatch(lines[0])
    if line is None:
        raise malformed()
    method, target, minor = line.groups()
    headers = read_fields(lines[1:])
    named = dict(headers)
    if len(named) < len(headers):
        named = _joined(headers)
    if b"host" not in named and minor == b"1":
        raise malformed()
    connection, expect = named.get(b"connection"), named.get(b"expect")
    return Head(
        method.decode("ascii"),
        target,
        "1.1" if minor == b"1" else "1.0",
        headers,
        _length(named.get(b"content-length"), named.get(b"transfer-encoding")),
        minor == b"0" or (connection is not None and b"close" in _listed(connection)),
        minor == b"1" and expect is not None and b"100-continue" in _listed(expect),
    )


def read_fields(lines: list[bytes]) -> list[tuple[bytes, bytes]]:
    """Names, in lower case, and values of header lines. Raises BadRequest."""
    if b"".join(lines).translate(None, _TEXT):
        raise malformed()
    headers = []
    for line in lines:
        name, colon, value = line.partition(b":")
        known = _NAMES.get(name)
        if known is None:
            if not _TOKEN.fullmatch(name):
                raise malformed()
            known = name.lower()
        if not colon:
            raise malformed()
        headers.append((known, value.strip(b" \t")))
    return headers


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


def _listed(value: bytes) -> list[bytes]:
    return [item.strip() for item in value.lower().split(b",")]
