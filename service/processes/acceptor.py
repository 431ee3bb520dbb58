"""How connections are shared out among the server processes.

All processes accept from the same sockets. Whoever is quickest would take most of a burst: of 32
clients that connected at once, one of two processes got up to 28. So a process that has more
connections than another lets that one go first.

A server that is about to end stops listening first. A client that connects too late is refused at
once and knows that its request has not begun, so a proxy can send it elsewhere.
"""

import asyncio
import contextlib
import errno
import logging
import mmap
import socket
from collections.abc import Callable, Collection, Sequence

# How long another process may take to accept; it may be busy.
_PATIENCE_S = 0.002
# A difference of up to one in so many does not matter.
_SLACK = 8
_AWAY = 2**62  # of a process that accepts nothing
# Errors for a lack of descriptors or memory (accept(2)), and the pause after one.
_LACKS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_PAUSE_S = 1.0

logger = logging.getLogger(__name__)


class ConnectionCounts:
    """How many connections each process has, in memory that processes forked later share."""

    def __init__(self, count: int) -> None:
        self._counts = memoryview(mmap.mmap(-1, 8 * count)).cast("q")
        for place in range(count):
            self.leave(place)

    def show(self, place: int, connections: int) -> None:
        """Note the connections of a process."""
        self._counts[place] = connections

    def leave(self, place: int) -> None:
        """Note that a process accepts no connections (any more)."""
        self._counts[place] = _AWAY

    def has_more(self, place: int, connections: int) -> bool:
        """Whether a process with so many connections lets another one go first."""
        others = (count for i, count in enumerate(self._counts) if i != place)
        least = min(others, default=_AWAY)
        return connections > least + least // _SLACK


class Acceptor:
    """Accepts connections for one of several processes, in its event loop."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        make_protocol: Callable[[], asyncio.Protocol],
        connections: Collection[object],
        counts: ConnectionCounts,
        place: int,
    ) -> None:
        self._sockets = sockets
        self._make_protocol = make_protocol
        self._connections = connections
        self._counts = counts
        self._place = place
        self._opening: set[asyncio.Task[object]] = set()
        self._waiting: dict[socket.socket, asyncio.TimerHandle] = {}
        self._is_closed = False
        self._loop = asyncio.get_running_loop()

    def start(self) -> None:
        """Begin to accept."""
        self.show()
        for listening in self._sockets:
            listening.setblocking(False)
            self._loop.add_reader(listening, self._on_ready, listening)

    def close(self) -> None:
        """Accept no more."""
        self._is_closed = True
        self._counts.leave(self._place)
        for listening in self._sockets:
            self._loop.remove_reader(listening)
        for timer in self._waiting.values():
            timer.cancel()

    def refuse(self) -> None:
        """Accept the connections that are waiting, and refuse new ones, in every process."""
        self.close()
        for listening in self._sockets:
            listening.setblocking(False)
            with contextlib.suppress(OSError):  # none is left, or another process was first
                while True:
                    self._open(listening.accept()[0])
            # The socket is shared: without `shutdown`, it listens until every process closes it.
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)

    def show(self) -> int:
        """Note the number of connections, for the other processes; returns it."""
        count = len(self._connections) + len(self._opening)
        if not self._is_closed:
            self._counts.show(self._place, count)
        return count

    def _on_ready(self, listening: socket.socket) -> None:
        if self._counts.has_more(self._place, self.show()):
            self._wait(listening, _PATIENCE_S)
        else:
            self._accept(listening)

    def _wait(self, listening: socket.socket, seconds: float) -> None:
        self._loop.remove_reader(listening)
        self._waiting[listening] = self._loop.call_later(seconds, self._go_on, listening)

    def _go_on(self, listening: socket.socket) -> None:
        del self._waiting[listening]
        self._loop.add_reader(listening, self._on_ready, listening)
        self._accept(listening)

    def _accept(self, listening: socket.socket) -> None:
        try:
            accepted, _ = listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another process has it, or the client is gone
        except OSError as error:
            if error.errno == errno.EINVAL:
                self.close()  # another process has ended the listening
                return
            if error.errno not in _LACKS:
                raise
            logger.error("cannot accept a connection: %s", error.strerror)  # noqa: TRY400 (no bug)
            if listening not in self._waiting:
                self._wait(listening, _PAUSE_S)
            return
        self._open(accepted)

    def _open(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        opening = self._loop.connect_accepted_socket(self._make_protocol, accepted)
        task: asyncio.Task[object] = self._loop.create_task(opening)
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        self.show()
