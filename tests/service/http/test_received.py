"""Requests read as h11 reads them, from bytes in any pieces; chunks within the bound, in turns."""

import itertools
from typing import Any

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.errors import ServiceError
from service.http.received import TURN_CHUNKS, Received, State
from service.http.request_heads import Head
from service.settings import Settings

HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
SETTINGS = Settings()


def chunked(parts: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(x), x) for x in parts) + b"0\r\nX-Trailer: 1\r\n\r\n"


def connection(max_chunks: int = 10_000) -> Received:
    return Received(Settings(max_body_chunks=max_chunks))


def read(received: Received) -> list[Head | bytes]:
    """What is there of a request, over as many turns as it takes."""
    events = []
    while True:
        received.begin_turn(TURN_CHUNKS)
        while (event := received.next_event()) is not None:
            events.append(event)
        if not received.is_cut:
            return events


def body_of(events: list[Head | bytes]) -> bytes:
    return b"".join(x for x in events if isinstance(x, bytes))


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    return [data[begin:end] for begin, end in itertools.pairwise(places)]


@given(
    parts=st.lists(st.binary(min_size=1, max_size=9), max_size=200),
    cuts=st.lists(st.integers(0, 3000), max_size=10),
)
def test_any_chunks_in_any_pieces_are_the_same_body(parts: list[bytes], cuts: list[int]) -> None:
    received = connection()
    found: list[Head | bytes] = []
    for piece in pieces(HEAD + chunked(parts) + b"GET", cuts):
        received.receive(piece)
        found += read(received)
    assert body_of(found) == b"".join(parts)
    assert received.state is State.NEXT
    assert received.ahead_bytes == len(b"GET")


def test_a_turn_reads_so_many_chunks_as_one_piece() -> None:
    received = connection()
    received.receive(HEAD + b"1\r\na\r\n" * 1000)
    assert isinstance(received.next_event(), Head)
    received.begin_turn(TURN_CHUNKS)
    assert received.next_event() == b"a" * TURN_CHUNKS
    assert received.next_event() is None
    assert received.is_cut
    assert body_of(read(received)) == b"a" * (1000 - TURN_CHUNKS)


def test_chunks_over_the_bound_are_refused_unless_they_are_a_streams() -> None:
    data = HEAD + b"1\r\na\r\n" * 11
    received = connection(10)
    received.receive(data)
    with pytest.raises(ServiceError, match="10 chunks") as refusal:
        read(received)
    assert refusal.value.status == 413
    exact = connection(11)
    exact.receive(data + b"0\r\n\r\n")
    assert body_of(read(exact)) == b"a" * 11
    stream = connection(10)
    stream.receive(HEAD)
    read(stream)
    stream.expect_stream()
    stream.receive(data.removeprefix(HEAD))
    assert body_of(read(stream)) == b"a" * 11


@pytest.mark.parametrize(
    ("head", "closes"),
    [
        ("Content-Length: 0", False),
        ("Content-Length: 65536", False),
        ("Content-Length: 65537", True),
        ("Content-Length: 10\r\nExpect: 100-continue", True),
        ("Transfer-Encoding: chunked", True),
    ],
)
def test_an_answer_before_the_body_says_whether_the_connection_stays(
    head: str, closes: bool
) -> None:
    received = connection()
    received.receive(f"POST / HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode())
    read(received)
    assert received.leaves_much == closes


# --- limits ---------------------------------------------------------------------------------------


def get(*lines: bytes, target: bytes = b"/") -> bytes:
    return b"\r\n".join([b"GET %s HTTP/1.1" % target, b"Host: x", *lines, b"", b""])


LINES = [b"X-%d: 1" % i for i in range(255)]
LIMITS = [
    (None, get(target=b"/" + b"a" * (SETTINGS.max_url_bytes - 1))),
    (414, get(target=b"/" + b"a" * SETTINGS.max_url_bytes)),
    (None, get(b"X: " + b"a" * (SETTINGS.max_header_bytes - len(b"Host: x\r\nX: \r\n")))),
    (431, get(b"X: " + b"a" * (SETTINGS.max_header_bytes - len(b"Host: x\r\nX: \r\n") + 1))),
    (None, get(*LINES)),
    (431, get(*LINES, b"Y: 1")),
    (431, HEAD + b"0\r\nX: " + b"a" * SETTINGS.max_header_bytes),
    (431, HEAD + b"0\r\n" + b"X: 1\r\n" * 257),
    (400, HEAD + b"1;" + b"a" * 1100),
]


@pytest.mark.parametrize(("status", "data"), LIMITS, ids=lambda value: str(value)[:12])
@pytest.mark.parametrize("step", [50_000, 1000])
def test_limits_hold_to_the_byte_in_any_pieces(status: int | None, data: bytes, step: int) -> None:
    received = connection()
    found = None
    try:
        for begin in range(0, len(data), step):
            received.receive(data[begin : begin + step])
            read(received)
    except ServiceError as error:
        found = error.status
        assert received.state is State.BROKEN
    assert found == status


@pytest.mark.parametrize(
    ("endless", "status"),
    [(b"a", 414), (b"GET / HTTP/1.1\r\nX: a", 431), (b"GET / HTTP/1.1\r\nX:1\r\n", 431)],
)
def test_a_head_without_an_end_is_refused_where_it_passes_its_limit(
    endless: bytes, status: int
) -> None:
    received = connection()
    received.receive(endless)
    with pytest.raises(ServiceError) as refusal:  # noqa: PT012 (how far it gets is the test)
        for _ in range(SETTINGS.max_url_bytes + SETTINGS.max_header_bytes):
            received.receive(b"X:1\r\n" if endless.endswith(b"\n") else b"a")
            read(received)
    assert refusal.value.status == status


# --- h11 ------------------------------------------------------------------------------------------

REFUSED = [
    (b"GET / HTTP/1.1\nHost: x\n\n", "line feeds alone"),
    (b"GET / HTTP/1.1\r\nHost: x\r\nA: 1\n b: 2\r\n\r\n", "a line feed in a value"),
    (b"GET / HTTP/1.1\r\nHost: x\r\nA: 1\r\n 2\r\n\r\n", "a folded line"),
    (b"GET / HTTP/1.1\r\nHost: x\r\nA: 1\x01\r\n\r\n", "a control character"),
    (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", "another version"),
    (b"A" * 33 + b" / HTTP/1.1\r\nHost: x\r\n\r\n", "a long method"),
    (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1, 1\r\n\r\na", "a list of lengths"),
    (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na", "lengths"),
    (HEAD.replace(b"Host", b"Content-Length: 1\r\nHost") + b"0\r\n\r\n", "two kinds of lengths"),
    (HEAD + b"1;a=\x01\r\na\r\n0\r\n\r\n", "a control character of an extension"),
    (HEAD + b"0\r\nA: \x7f\r\n\r\n", "a control character of a trailer"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "_what"), REFUSED, ids=[x for _, x in REFUSED])
def test_some_requests_are_refused_though_h11_reads_them(data: bytes, _what: str) -> None:
    assert isinstance(by_h11(data), tuple)
    received = connection()
    received.receive(data)
    with pytest.raises(ServiceError) as refusal:
        read(received)
    assert refusal.value.status == 400


def by_h11(data: bytes) -> tuple[bytes, bytes, list[tuple[bytes, bytes]], bytes, int] | None:
    """Method, target, headers, body of the first request, and how many bytes follow it."""
    reader = h11.Connection(h11.SERVER)
    reader.receive_data(data)
    events: list[Any] = []
    try:
        while (event := reader.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            events.append(event)
            if isinstance(event, h11.EndOfMessage):
                request = events[0]
                body = b"".join(bytes(x.data) for x in events if isinstance(x, h11.Data))
                headers = [(bytes(name), bytes(value)) for name, value in request.headers]
                rest = len(reader.trailing_data[0])
                return request.method, request.target, headers, body, rest
    except h11.RemoteProtocolError:
        pass
    return None


def by_us(
    parts: list[bytes],
) -> tuple[bytes, bytes, list[tuple[bytes, bytes]], bytes, int] | None:
    received = connection()
    events: list[Head | bytes] = []
    try:
        for part in parts:
            received.receive(part)
            events += read(received)
    except ServiceError:
        return None
    if received.state is not State.NEXT:
        return None
    head = events[0]
    assert isinstance(head, Head)
    method = head.method.encode("ascii")
    return method, head.target, head.headers, body_of(events), received.ahead_bytes


GOOD = [
    get(b"Accept: */*", b"X-A:b \t ", b"B:", target=b"http://x/a?b=%41#c"),
    b"BREW * HTTP/1.0\r\n\r\n",
    b"POST /a HTTP/1.1\r\nhOST: x\r\nContent-Length: 5\r\n\r\nab\r\ncGET / HTTP/1.1\r\n\r\n",
    HEAD + b'3;x="y"\r\nabc\r\n00A \r\n0123456789\r\n0\r\nT: 1\r\n\r\nGET',
]
BYTES = st.sampled_from([b"\r", b"\n", b" ", b":", b"\t", b"\0", b"\x80", b"1", b"a", b"\r\n", b""])


@given(
    request=st.sampled_from([*GOOD, *(data for data, _ in REFUSED)]),
    changes=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 2), BYTES), max_size=3),
    cuts=st.lists(st.integers(0, 200), max_size=4),
)
@example(GOOD[0], [], []).via("good")
@example(GOOD[3], [], list(range(200))).via("byte by byte")
@example(b"GET / HTTP/1.0\r\nHost\r\n\r\n", [], []).via("no colon")
@example(b"\r\n\r\nGET / HTTP/1.0\r\n\r\n", [], []).via("an empty line")
@example(b"\r\nGET / HTTP/1.0\r\n\r\n", [], []).via("a line end in front")
def test_what_is_accepted_is_what_h11_reads(
    request: bytes, changes: list[tuple[int, int, bytes]], cuts: list[int]
) -> None:
    for at, length, instead in changes:
        request = request[: at % len(request)] + instead + request[at % len(request) + length :]
    found = by_us(pieces(request, cuts))
    if found is not None:
        expected = by_h11(request)
        assert expected is not None, request
        # h11 has values of Transfer-Encoding in lower case.
        headers = [
            (name, value.lower() if name == b"transfer-encoding" else value)
            for name, value in found[2]
        ]
        assert (*found[:2], headers, *found[3:]) == expected


def test_a_line_that_came_before_is_read_as_the_first_time() -> None:
    received = connection()
    found = []
    for data in [*GOOD[:2], *GOOD[:2], GOOD[0].replace(b"/a", b"/b"), GOOD[0]]:
        received.receive(data)
        (head,) = read(received)
        assert isinstance(head, Head)
        found.append((head.method, head.target, head.version, head.headers))
        received.begin_next()
    assert found[2:4] == found[:2]
    assert [x[1] for x in found[4:]] == [b"http://x/b?b=%41#c", b"http://x/a?b=%41#c"]
    received.receive(b"\r\n\r\n")
    with pytest.raises(ServiceError):
        read(received)


def test_what_h11_reads_is_accepted_unless_it_is_one_of_those() -> None:
    for request in GOOD:
        assert by_us([request]) is not None
        assert by_us([bytes([x]) for x in request]) is not None
