"""Rows 32 and 38 of the table of faults: answers that nobody reads, streams that stand still."""

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.server import Server, serve
from tests.faults.conftest import LIMITS
from tests.faults.support import eventually, goes_on, moved

SETTINGS: dict[str, Any] = LIMITS | {
    "request_timeout_s": 1.5, "keep_alive_s": 1, "max_connections": 12, "stream_yield_s": 0.3,
    "max_unsent_bytes": 2_500_000, "max_line_bytes": 2**20,
}  # fmt: skip
ASKED = {"model": "tiny-lstm", "text": ["a cat in a hat " * 50] * 5, "tokens": True}
REQUESTS = "unroll_requests_total"
BODY = json.dumps(ASKED | {"top_logprobs": 3}).encode()


@pytest.fixture(scope="module")
def server(tiny_models: Path) -> Iterator[Server]:
    with serve(tiny_models, **SETTINGS) as running:
        yield running


def connected(server: Server, receives: int | None = None) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.socket()
    if receives is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receives)
    connection.settimeout(20)
    connection.connect((host, int(port)))
    return connection


def request(path: str, body: bytes, *lines: str) -> bytes:
    head = (f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *lines)
    return "\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def one_answer(connection: socket.socket) -> tuple[bytes, bytes]:
    """The head and the body of the next answer."""
    whole = b""
    while b"\r\n\r\n" not in whole:
        part = connection.recv(65536)
        assert part, "closed"
        whole += part
    head, _, body = whole.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head.lower())
    while length is not None and len(body) < int(length[1]):
        part = connection.recv(65536)
        assert part, "cut off"
        body += part
    return head, body


def is_cut(connection: socket.socket) -> bool:
    """Whether the server has closed; nothing is read of what comes before that."""
    try:
        return connection.send(b"\r\n") == 0
    except OSError:
        return True


def test_a_client_that_never_reads_is_given_up_in_the_time_of_a_request(server: Server) -> None:
    asked = [
        request("/score", BODY),
        request("/score", BODY, "Connection: close"),
        request("/score", BODY) * 2,  # the second waits for the first
    ]
    before = server.samples()
    with ExitStack() as held:
        readers = []
        for each in asked[:2]:
            readers.append(held.enter_context(closing(connected(server, 4096))))
            readers[-1].sendall(each)
        eventually(lambda: all(is_cut(x) for x in readers), 10)
        readers = [held.enter_context(closing(connected(server, 4096)))]
        readers[0].sendall(asked[2])
        eventually(lambda: is_cut(readers[0]), 10)
    name = 'unroll_cancelled_total{reason="client-gone"}'
    eventually(lambda: moved(before, server.samples(), name) >= 3)
    goes_on(server)


def whole_answer(server: Server) -> bytes:
    with closing(connected(server)) as connection:
        connection.sendall(request("/score", BODY))
        head, body = one_answer(connection)
    return body if head.startswith(b"HTTP/1.1 200 ") else b""


def answered(server: Server) -> float:
    found = server.samples()
    return sum(n for name, n in found.items() if name.startswith(REQUESTS) and "/score" in name)


def test_clients_that_read_nothing_cost_no_more_than_the_bound(server: Server) -> None:
    """Each is owed 0.9 MB, and 2.5 MB may wait."""
    length = len(whole_answer(server))
    assert length > 750_000
    before, resident = server.samples(), server.resident_bytes()
    begun = answered(server)
    with ExitStack() as held:
        for _ in range(10):
            reader = held.enter_context(closing(connected(server, 4096)))
            reader.sendall(request("/score", BODY))
        eventually(lambda: answered(server) == begun + 10)
        assert server.resident_bytes() - resident < 64 * 2**20
        # What is small is answered all the same.
        goes_on(server, 5)
    name = 'unroll_rejected_total{reason="too-much-unsent"}'
    assert moved(before, server.samples(), name) >= 1
    eventually(lambda: len(whole_answer(server)) == length)


def test_a_client_that_reads_slowly_gets_all_of_it(server: Server) -> None:
    expected = whole_answer(server)
    with closing(connected(server, 65536)) as connection:
        connection.sendall(request("/score", BODY) + get("/livez"))
        found = b""
        begun = time.monotonic()
        while len(found) < len(expected):
            part = connection.recv(65536)
            assert part, "cut off"
            found += part
            time.sleep(0.15)
        # Longer than a request may take, and nothing is lost; then comes what was asked behind it.
        assert time.monotonic() - begun > SETTINGS["request_timeout_s"]
        while b"live" not in found[-200:]:
            part = connection.recv(65536)
            assert part, "closed"
            found += part
    head, _, body = found.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert body[: len(expected)] == expected


STREAM = (
    b"POST /score?model=tiny-lstm HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


def test_health_is_told_where_streams_hold_every_place_and_the_idle_give_way(
    server: Server,
) -> None:
    with ExitStack() as held:

        def another() -> socket.socket:
            return held.enter_context(closing(connected(server)))

        streams = [another() for _ in range(12)]
        for stream in streams:
            stream.sendall(STREAM + b"6\r\na cat\n\r\n")
            assert b"logprob" in one_answer(stream)[1] + stream.recv(65536)
        streams[0].sendall(b"6\r\na cat\n\r\n")
        streams[0].recv(65536)
        # Before they have stood still for long: health, and nothing else.
        for path, status in (("/livez", 200), ("/readyz", 200), ("/models", 503)):
            newcomer = another()
            newcomer.sendall(get(path))
            head, body = one_answer(newcomer)
            assert head.startswith(f"HTTP/1.1 {status} ".encode()), path
            assert b"connection: close" in head.lower()
            if status == 503:
                assert b"retry-after: 1" in head.lower()
                assert json.loads(body)["type"] == "too-many-connections"
        # However many say nothing there.
        for _ in range(40):
            another()
        newcomer = another()
        newcomer.sendall(get("/livez"))
        assert one_answer(newcomer)[0].startswith(b"HTTP/1.1 200 ")
        # Then those that have stood still for longest go, and are told why.
        time.sleep(0.4)
        streams[0].sendall(b"6\r\na cat\n\r\n")
        newcomer = another()
        newcomer.sendall(get("/models"))
        assert one_answer(newcomer)[0].startswith(b"HTTP/1.1 200 ")
        ended = [stream for stream in streams if _last_words(stream)]
        assert ended
        assert streams[0] not in ended
    goes_on(server, 5)


def _last_words(stream: socket.socket) -> bool:
    """Whether a stream has been ended, with a reason."""
    stream.settimeout(0.2)
    told = b""
    with suppress(TimeoutError):
        while part := stream.recv(65536):
            told += part
        assert b"others need its place" in told
        return True
    return False
