"""An open loop that measures the server and not itself: requests at random times.

On a machine whose processors are all busy, a load generator waits for its turn like everyone else.
A latency by its own clock would contain that wait. Here it ends at the moment at which the kernel
took the last bytes of the answer from the server (`SO_TIMESTAMPNS` on the receiving socket), and
begins right before the request is handed to the kernel. A request that is sent late, since the
generator had to wait, counts from when it is sent; how late they were is reported.

Connections are open beforehand and used in turns. There are more of them than requests under way:
a server that accepts fewer would be measured at that limit instead.
"""

import select
import socket
import struct
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from urllib.parse import urlsplit

from bench.load import arrivals, cpu_s
from bench.plain_clients import BadAnswer, head_of_whole

_SO_TIMESTAMPNS = 35  # Linux; the socket module does not name it
_TIMESPEC = struct.Struct("@ll")  # seconds and nanoseconds
_MOST_WAIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A request that was answered."""

    status: int
    latency_s: float
    late_s: float  # how long after its time it was sent
    has_retry_after: bool


@dataclass(frozen=True, slots=True)
class OpenRun:
    """The answers of an open loop."""

    answers: Sequence[Answer]
    sent: int
    unsent: int  # because all connections were in use
    span_s: float
    server_cpu_s: float
    client_cpu_s: float


def open_loop(
    url: str,
    requests: Iterator[bytes],
    *,
    rate_per_s: float,
    duration_s: float,
    connections: int,
    server_pid: int,
) -> OpenRun:
    """Send at random times (Poisson), and wait for every answer. Raises BadAnswer."""
    parts = urlsplit(url)
    address = (parts.hostname or "", parts.port or 80)
    with ExitStack() as stack:
        poll = stack.enter_context(select.epoll())
        opened = {}
        for _ in range(connections):
            connection = _Connection(address)
            stack.callback(connection.socket.close)
            poll.register(connection.socket, select.EPOLLIN)
            opened[connection.socket.fileno()] = connection
        loop = _Loop(poll, opened, requests)
        times = arrivals(rate_per_s, duration_s)
        server_before, client_before = cpu_s(server_pid), time.process_time()
        begin = time.perf_counter()
        loop.run(times)
        return OpenRun(
            loop.answers,
            loop.sent,
            loop.unsent,
            duration_s,
            # Up to the last answer, which comes a little after the span.
            (cpu_s(server_pid) - server_before) * duration_s / (time.perf_counter() - begin),
            time.process_time() - client_before,
        )


class _Connection:
    """A connection that is kept open, with at most one request on it at a time."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, _MOST_WAIT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._received = b""
        self._sent_at_ns = 0
        self._late_s = 0.0

    def send(self, request: bytes, late_s: float) -> None:
        """Send a whole request."""
        self._late_s = late_s
        self._sent_at_ns = time.time_ns()  # of the clock that the kernel's timestamps use
        self.socket.sendall(request)

    def receive(self) -> Answer | None:
        """Read what has come; the answer once it is whole, else None."""
        data, ancillary, _, _ = self.socket.recvmsg(65536, socket.CMSG_SPACE(_TIMESPEC.size))
        if not data:
            raise BadAnswer("the server closed the connection")
        self._received += data
        head = head_of_whole(self._received)
        if head is None:
            return None
        if not ancillary:
            raise BadAnswer("the kernel gave no time of arrival")
        seconds, nanoseconds = _TIMESPEC.unpack(ancillary[0][2])
        latency_s = (seconds * 10**9 + nanoseconds - self._sent_at_ns) / 1e9
        self._received = b""
        return Answer(head.status, latency_s, self._late_s, head.has_retry_after)


class _Loop:
    def __init__(
        self, poll: select.epoll, opened: Mapping[int, _Connection], requests: Iterator[bytes]
    ) -> None:
        self._poll = poll
        self._opened = opened
        self._requests = requests
        self._idle = deque(opened.values())
        self.answers: list[Answer] = []
        self.sent = self.unsent = 0

    def run(self, times: Sequence[float]) -> None:
        """Send at these times, in seconds from now, then wait for what is still under way."""
        begin = time.perf_counter()
        for at in times:
            while (early_s := begin + at - time.perf_counter()) > 0:
                self._receive(early_s)
            if self._idle:
                self._idle.popleft().send(next(self._requests), -early_s)
                self.sent += 1
            else:
                self.unsent += 1
        until = time.perf_counter() + _MOST_WAIT_S
        while len(self._idle) < len(self._opened):
            if time.perf_counter() > until:
                raise BadAnswer(f"no answer within {_MOST_WAIT_S:g} s")
            self._receive(1.0)

    def _receive(self, wait_s: float) -> None:
        """Wait for answers, at most for so long, and take those that have come."""
        # `epoll` rounds up to milliseconds, `select` does not.
        select.select([self._poll], [], [], wait_s)
        for descriptor, _ in self._poll.poll(0):
            connection = self._opened[descriptor]
            answer = connection.receive()
            if answer is not None:
                self.answers.append(answer)
                self._idle.append(connection)
