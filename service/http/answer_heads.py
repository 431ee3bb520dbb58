"""The head of an answer: status line and header lines, and how its body ends.

Also answers that the server gives by itself, before the application's or instead of it.
"""

from collections.abc import Collection, Iterable
from http import HTTPStatus
from typing import NamedTuple

from service.errors import ServiceError
from service.http.problems import problem_of

_LINES = {int(x): f"HTTP/1.1 {x} {x.phrase}\r\n".encode("ascii") for x in HTTPStatus}
_CLOSE = b"connection: close\r\n"
_END = b"\r\n"
_CHUNKED = b"transfer-encoding: chunked\r\n"
# Answers that never have a body (RFC 9110, 15.3.5 and 15.4.5).
BODILESS = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
FAILED = (
    b"HTTP/1.1 500 Internal Server Error\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: 21\r\nconnection: close\r\n\r\nInternal Server Error"
)


class AnswerHead(NamedTuple):
    """Status line and header lines; `length` of the body, None if it is not known."""

    lines: bytes
    length: int | None
    closes: bool  # whether the application closes the connection; a header line says so


def answer_head(
    status: int, headers: Collection[tuple[bytes, bytes]], standing: bytes
) -> AnswerHead:
    """The head of an answer with these headers and the `standing` lines of every answer.

    Raises ValueError for line ends in a header, which would begin another one.
    """
    lines = b"".join(
        (
            _LINES.get(status) or b"HTTP/1.1 %d \r\n" % status,
            standing,
            b"\r\n".join(map(b": ".join, headers)),
            b"\r\n" if headers else b"",
        )
    )
    count = 1 + standing.count(b"\n") + len(headers)
    if lines.count(b"\n") != count or lines.count(b"\r") != count:
        # No part of the text: it may come from a client.
        message = "a header of an answer contains a line end"
        raise ValueError(message)
    named = dict(headers)
    length = named.get(b"content-length")
    return AnswerHead(
        lines,
        None if length is None else int(length),
        b"close" in named.get(b"connection", b"").lower(),
    )


def framed(head: AnswerHead, *, closes: bool, chunked: bool) -> bytes:
    """The whole head."""
    if chunked:
        return head.lines + (_CHUNKED + _CLOSE if closes and not head.closes else _CHUNKED) + _END
    return head.lines + (_CLOSE + _END if closes and not head.closes else _END)


def standing_lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The lines of headers that every answer has, such as Date."""
    return b"".join(b"%b: %b\r\n" % header for header in headers)


def refusal(error: ServiceError, request_id: str) -> bytes:
    """A whole answer with a problem document, after which the connection closes."""
    content = problem_of(error, request_id).model_dump_json().encode()
    headers = {
        "Content-Type": "application/problem+json",
        "Content-Length": str(len(content)),
        "X-Request-Id": request_id,
        "Connection": "close",
        **error.headers,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    line = f"HTTP/1.1 {error.status} {error.title}\r\n{head}\r\n"
    return line.encode("ascii") + content
