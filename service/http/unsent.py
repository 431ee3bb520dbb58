"""Unsent answers: a limit on the bytes that wait for slow clients, and a deadline for reading them.

A transport buffers whatever it is given until the client has read it. Here large answers wait
outside the transport, and one limit for the process covers all of them.
"""

import asyncio
import math
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

# The most passed to the transport at a time; the rest of a larger piece waits here.
SLICE_BYTES = 64 * 1024
# The transport reports that it is full above this.
_HIGH_WATER_BYTES = 16 * 1024
# A client that has taken nothing for this long is disconnected if another answer needs the room.
_STALLED_S = 2.0
# Parts of a stream are not checked for room beforehand. Above this multiple of the limit, the
# client that has taken nothing for longest is disconnected, however short that time is.
_FAR = 1.25
# The lowest rate at which a client may read a large answer, averaged over the request timeout.
_LEAST_BYTES_A_S = 8192
# After answering a body that was not read to its end: time for the client to read the answer.
_LINGER_S = 2.0
# Linux only: limits how much the kernel buffers ahead of what it has sent.
_NOTSENT_LOWAT: int | None = getattr(socket, "TCP_NOTSENT_LOWAT", None)


class Unsent:
    """The unsent bytes of the process and their limit."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._outlets: set[Outlet] = set()

    def has_room(self, size: int) -> bool:
        """Whether an answer of `size` bytes may wait; disconnects stalled clients to make room.

        An answer over the limit by itself may wait if nothing else does.
        """
        while self.bytes and self.bytes + size > self.max_bytes:
            stalled = self._longest_stalled(_STALLED_S)
            if stalled is None:
                return False
            stalled.give_up()
        return True

    def count(self, outlet: "Outlet", before: int, now: int) -> None:
        """Update the unsent bytes of a connection; over the limit, disconnect stalled clients."""
        self.bytes += now - before
        if now:
            self._outlets.add(outlet)
        else:
            self._outlets.discard(outlet)
        while now > before and self.bytes > self.max_bytes and len(self._outlets) > 1:
            # A client that reads may continue until the limit is exceeded by far.
            is_far = self.bytes > _FAR * self.max_bytes
            stalled = self._longest_stalled(0.0 if is_far else _STALLED_S)
            if stalled is None or stalled is outlet:
                return
            stalled.give_up()

    def _longest_stalled(self, least_s: float) -> "Outlet | None":
        found = max(self._outlets, key=lambda x: x.stalled_s, default=None)
        return None if found is None or found.stalled_s < least_s else found


class Outlet(asyncio.Transport):
    """A connection's transport, for answers of any size to clients of any speed.

    It closes when everything has been sent. If the client is still sending then (`lingers`), it
    reads on for a moment: on closing with unread data, the kernel would discard the answer.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        unsent: Unsent,
        *,
        timeout_s: float,
        on_full: Callable[[], None],
        on_drained: Callable[[], None],
        on_given_up: Callable[[], None],
        lingers: Callable[[], bool],
    ) -> None:
        super().__init__()
        self._transport = transport
        self._unsent = unsent
        self._timeout_s = timeout_s
        self._on_full = on_full
        self._on_drained = on_drained
        self._on_given_up = on_given_up
        self._lingers = lingers
        self._loop = asyncio.get_running_loop()
        self._queue: deque[memoryview] = deque()
        self._queued = 0  # bytes in the queue
        self._counted = 0  # bytes reported to `unsent`
        self._written = 0  # bytes written since the start
        self._is_paused = False  # the transport is full
        self._moved_at = self._loop.time()
        self._pumping: asyncio.Handle | None = None
        self._watching: asyncio.TimerHandle | None = None
        self._lingering: asyncio.TimerHandle | None = None
        self.closing_since: float | None = None
        transport.set_write_buffer_limits(_HIGH_WATER_BYTES)

    # --- asyncio's interface of a transport -----------------------------------------------------

    def write(self, data: Any) -> None:
        """Send `data` after everything that waits."""
        if self.is_closing() or not data:
            return
        self._written += len(data)
        if len(data) <= SLICE_BYTES and not self._queue:
            self._transport.write(data)
            return
        if not self._queue:
            self._look_closely()
        self._queue.append(memoryview(data))
        self._queued += len(data)
        self._on_full()
        self._count()
        self._watch()
        self._pump()

    def is_closing(self) -> bool:
        """Whether it accepts no more data."""
        return self.closing_since is not None or self._transport.is_closing()

    def close(self) -> None:
        """Close once everything has been sent."""
        if self.is_closing():
            return
        self.closing_since = self._loop.time()
        if not self._queue:
            self._finish()
        if self.get_write_buffer_size():
            self._watch()

    def abort(self) -> None:
        """Close at once; unsent data is lost."""
        self.closing_since = self.closing_since or self._loop.time()
        self._transport.abort()
        self.lost()

    def pause_reading(self) -> None:
        """Stop reading."""
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """The transport's extra information."""
        return self._transport.get_extra_info(name, default)

    def get_write_buffer_size(self) -> int:
        """The number of unsent bytes."""
        return self._queued + self._transport.get_write_buffer_size()

    # --- events of the transport, passed on by the protocol -------------------------------------

    def pause(self) -> None:
        """The transport's buffer is full."""
        self._is_paused = True
        self._on_full()
        self._count()
        self._watch()

    def resume(self) -> None:
        """The transport's buffer has room again."""
        self._is_paused = False
        self._moved_at = self._loop.time()
        self._count()
        if self._queue:
            self._pump()
        else:
            self._drained()

    def lost(self) -> None:
        """Release everything: the connection is gone."""
        for handle in (self._pumping, self._watching, self._lingering):
            if handle is not None:
                handle.cancel()
        self._queue.clear()
        self._queued = 0
        self._is_paused = False
        self._unsent.count(self, self._counted, 0)
        self._counted = 0

    # --- unsent bytes ---------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """Whether unsent bytes wait for the client."""
        return bool(self._queue) or self._is_paused

    @property
    def is_lingering(self) -> bool:
        """Whether everything has been sent and the client is still sending."""
        return self._lingering is not None

    @property
    def stalled_s(self) -> float:
        """How long the client has taken nothing, in seconds."""
        return self._loop.time() - self._moved_at

    def give_up(self) -> None:
        """Disconnect a client that does not read."""
        self._on_given_up()
        self.abort()

    def unsent_for(self, seconds: float) -> None:
        """Close; unsent bytes have already waited for `seconds` of their deadline."""
        if self.get_write_buffer_size() and self._watching is None:
            self._watch(max(0.0, self._timeout_s - seconds))
        self.close()

    def end_lingering(self) -> None:
        """Close without waiting for the client."""
        if self.is_lingering:
            self._transport.close()

    def _count(self) -> None:
        now = self._queued
        if self._is_paused:
            now += self._transport.get_write_buffer_size()
        before, self._counted = self._counted, now
        self._unsent.count(self, before, now)

    def _pump(self) -> None:
        """Pass on one slice, and continue after the transport has had its round."""
        if self._pumping is not None:
            self._pumping.cancel()
            self._pumping = None
        if not self._queue or self._is_paused or self._transport.is_closing():
            return
        whole = self._queue.popleft()
        part, rest = whole[:SLICE_BYTES], whole[SLICE_BYTES:]
        if rest:
            self._queue.appendleft(rest)
        self._queued -= len(part)
        self._moved_at = self._loop.time()
        self._transport.write(part)
        self._count()
        self._pumping = self._loop.call_soon(self._pump if self._queue else self._drained)

    def _drained(self) -> None:
        self._pumping = None
        if self.is_full:
            return
        self._on_drained()
        if self.closing_since is not None and not self._queue:
            self._finish()

    def _finish(self) -> None:
        if self._transport.is_closing() or self._lingering is not None:
            return
        if not self._lingers():
            self._transport.close()
            return
        self._transport.write_eof()
        self._transport.resume_reading()
        self._lingering = self._loop.call_later(_LINGER_S, self._transport.close)

    def _look_closely(self) -> None:
        """Make the kernel report early that the client has read something."""
        self._moved_at = self._loop.time()
        connection = self.get_extra_info("socket")
        if _NOTSENT_LOWAT is not None and connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, SLICE_BYTES)

    def _watch(self, seconds: float | None = None) -> None:
        """Check after the request timeout, or after `seconds`, how much the client has taken."""
        if self._watching is None:
            waits = self.get_write_buffer_size()
            least = math.ceil(_LEAST_BYTES_A_S * self._timeout_s)
            goal = self._written - waits + min(waits, least)
            after = self._timeout_s if seconds is None else seconds
            self._watching = self._loop.call_later(after, self._check, goal)

    def _check(self, goal: int) -> None:
        self._watching = None
        waits = self.get_write_buffer_size()
        if self._written - waits < goal:
            self.give_up()
        elif waits and (self.is_full or self.is_closing()):
            self._watch()
