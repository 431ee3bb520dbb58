"""Clients that cost as little as they can: a closed loop over plain sockets.

They send requests prepared as bytes and read only the status and the length of an answer. All of
them share one thread, which waits in `epoll`. A span begins and ends with an idle server, so the
processor time between the two belongs to exactly the answers in it.
"""

import select
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np
from pydantic_core import to_json

from bench.load import cpu_s

_LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz     "))
_SETTLE_S = 0.01  # for what a server still does after its last answer, such as its log line
_MOST_WAIT_S = 60.0
# What most HTTP libraries send.
_HEADERS = (
    "Host: {host}\r\nAccept: */*\r\nAccept-Encoding: gzip, deflate\r\nUser-Agent: bench/1\r\n"
    "Content-Type: application/json\r\nContent-Length: "
)


@dataclass(frozen=True, slots=True)
class Span:
    """What happened between two moments at which nothing was being answered."""

    seconds: float
    server_cpu_s: float
    client_cpu_s: float
    latencies_s: Sequence[float]  # of every request, in the order of the answers

    @property
    def answers(self) -> int:
        """The number of requests that were sent and answered."""
        return len(self.latencies_s)

    @property
    def cpu_s_per_request(self) -> float:
        """The server's processor time for one request."""
        return self.server_cpu_s / self.answers


@dataclass(frozen=True, slots=True)
class Head:
    """What matters of the head of an answer."""

    status: int
    content_length: int
    has_retry_after: bool


class BadAnswer(Exception):
    """An answer that was not expected, or none."""


def texts(size: int, seed: int) -> Iterator[str]:
    """Endless random texts of `size` characters; in practice, none is ever repeated."""
    rng = np.random.default_rng(seed)
    while True:
        letters = rng.choice(_LETTERS, (1000, size))
        yield from map("".join, letters.tolist())


def posts(url: str, bodies: Iterator[Mapping[str, object]]) -> Iterator[bytes]:
    """Requests to a URL as bytes, one for each body."""
    parts = urlsplit(url)
    head = f"POST {parts.path} HTTP/1.1\r\n{_HEADERS.format(host=parts.netloc)}".encode()
    for body in bodies:
        content = to_json(body)
        yield b"%b%d\r\n\r\n%b" % (head, len(content), content)


@contextmanager
def connected(url: str, requests: Iterator[bytes], clients: int) -> Iterator["PlainClients"]:
    """Clients that have each had one answer, so that connecting is not measured."""
    parts = urlsplit(url)
    with ExitStack() as stack:
        poll = stack.enter_context(select.epoll())
        connections = {}
        for _ in range(clients):
            connection = _Connection((parts.hostname or "", parts.port or 80))
            stack.callback(connection.socket.close)
            connections[connection.socket.fileno()] = connection
            poll.register(connection.socket, select.EPOLLIN)
        found = PlainClients(poll, connections, requests)
        found.send_for(0.0)
        time.sleep(_SETTLE_S)
        yield found


class PlainClients:
    """Open connections to a server, and the requests that they will send."""

    def __init__(
        self,
        poll: select.epoll,
        connections: Mapping[int, "_Connection"],
        requests: Iterator[bytes],
    ) -> None:
        self._poll = poll
        self._connections = connections
        self._requests = requests

    def span(self, duration_s: float, server_pid: int, *, pause_s: float = 0.0) -> Span:
        """Send for `duration_s`, then wait for the last answers. Raises BadAnswer.

        After an answer, a client waits for `pause_s`: only useful with a single client, since all
        share a thread.
        """
        server_before, client_before = cpu_s(server_pid), time.process_time()
        begin = time.perf_counter()
        latencies_s = self.send_for(duration_s, pause_s)
        seconds = time.perf_counter() - begin
        client_cpu_s = time.process_time() - client_before
        time.sleep(_SETTLE_S)
        return Span(seconds, cpu_s(server_pid) - server_before, client_cpu_s, latencies_s)

    def send_for(self, duration_s: float, pause_s: float = 0.0) -> list[float]:
        """One request on every connection, and another after each answer in this time."""
        until = time.perf_counter() + duration_s
        for connection in self._connections.values():
            connection.send(next(self._requests))
        waiting = len(self._connections)
        latencies_s = []
        while waiting:
            ready = self._poll.poll(_MOST_WAIT_S)
            if not ready:
                raise BadAnswer(f"no answer within {_MOST_WAIT_S:g} s")
            for descriptor, _ in ready:
                connection = self._connections[descriptor]
                latency_s = connection.receive()
                if latency_s is None:
                    continue
                latencies_s.append(latency_s)
                if time.perf_counter() < until:
                    if pause_s:
                        time.sleep(pause_s)
                    connection.send(next(self._requests))
                else:
                    waiting -= 1
        return latencies_s


class _Connection:
    """A connection that is kept open, with at most one request on it at a time."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, _MOST_WAIT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""
        self._sent_at = 0.0

    def send(self, request: bytes) -> None:
        """Send a whole request."""
        self._sent_at = time.perf_counter()
        self.socket.sendall(request)

    def receive(self) -> float | None:
        """Read what has come; the latency once the answer is whole, else None."""
        data = self.socket.recv(65536)
        if not data:
            raise BadAnswer("the server closed the connection")
        self._received += data
        head = head_of_whole(self._received)
        if head is None:
            return None
        if head.status != 200:
            raise BadAnswer(f"an answer with status {head.status}")
        self._received = b""
        return time.perf_counter() - self._sent_at


def head_of_whole(received: bytes) -> Head | None:
    """The head of an answer, or None until all of the answer has come. Raises BadAnswer."""
    head, size = head_of(received)
    return None if head is None or size < head.content_length else head


def head_of(received: bytes) -> tuple[Head | None, int]:
    """The head of an answer, None if it is not whole yet, and how many bytes follow it.

    Raises BadAnswer without a Content-Length.
    """
    head, blank, content = received.partition(b"\r\n\r\n")
    if not blank:
        return None, 0
    first, *lines = head.lower().split(b"\r\n")
    fields = dict(line.split(b":", 1) for line in lines)
    if b"content-length" not in fields:
        raise BadAnswer("an answer without Content-Length")
    status = int(first.split(b" ", 2)[1])
    return Head(status, int(fields[b"content-length"]), b"retry-after" in fields), len(content)
