"""HTTP/1.1 with limits: deadlines for slow requests, a maximum of connections, bounded answers.

uvicorn has no deadline for a request that arrives slowly or an answer that nobody reads, and it
answers malformed requests in plain text. This extends its h11 protocol with deadlines and problem
documents. httptools would be faster, but it accepts headers of any size.
"""

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.errors import (
    BadRequest,
    ClientGone,
    ReceiptTimeout,
    ServiceError,
    TooManyConnections,
)
from service.http.gateway import HEALTH
from service.http.problems import problem_of
from service.http.received import FIRST_CHUNKS, TURN_CHUNKS, ReceivingConnection
from service.http.turns import Turns
from service.http.unsent import Outlet, Unsent
from service.observe.trace_context import fresh_id
from service.settings import Settings

# Bytes read ahead of the request that is being answered; after that, reading stops.
_AHEAD_BYTES = 64 * 1024
# The kernel's receive buffer for a body that is a stream.
_STREAM_AHEAD_BYTES = 128 * 1024
# Connections above `max_connections`, which may only send requests to health paths.
_SPARE_PLACES = 16


class BoundedProtocol(H11Protocol):
    """For uvicorn's `http` option. The application must be the unwrapped one of `create_app`."""

    conn: ReceivingConnection
    flow: "_Flow"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        state = self.app.state
        self.settings: Settings = state.settings
        self.turns: Turns = state.turns
        self.unsent: Unsent = state.unsent
        self.conn = ReceivingConnection(self.settings, self._check_place)
        self.outlet: Outlet
        self._deadline: asyncio.TimerHandle | None = None
        self._awaits_body = False
        self._awaits_turn = False
        self._next_chunks = FIRST_CHUNKS
        self._completes = False  # the answer is complete, but the client has not read all of it
        self._discarded = 0  # bytes received after the end
        self._tell_gone: Callable[[], None] | None = None
        self.spare_since: float | None = None  # since when it uses a spare place
        self.answered_at = 0.0  # time.perf_counter() at its last answer
        self.still_since: float | None = None  # since when its stream has been idle
        self.give_way: asyncio.Future[None] | None = None  # set it to end that stream

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection; if there are too many, only for requests to health paths."""
        super().connection_made(transport)
        self.flow = _Flow(transport)
        self.outlet = self.transport = Outlet(
            transport,
            self.unsent,
            timeout_s=self.settings.request_timeout_s,
            on_full=self.flow.pause_writing,
            on_drained=self._drained,
            on_given_up=self._given_up,
            lingers=lambda: self.conn.receives or self.conn.their_state is h11.ERROR,
        )
        if not self._fits():
            self.spare_since = self.loop.time()
            self.conn.closes = True
            self._bound_places()
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Release everything that the connection holds."""
        self._end_deadline()
        self.outlet.lost()
        # After a reset, uvicorn leaves its timer running, which would keep this object alive.
        self._unset_keepalive_if_required()
        super().connection_lost(exc)
        self._disconnected()

    def data_received(self, data: bytes) -> None:
        """Take bytes; the deadline of the head starts at its first byte, the body's at its end."""
        if self.outlet.is_closing():
            self._discarded += len(data)
            if self._discarded > self.settings.max_body_bytes:
                self.outlet.end_lingering()
            else:
                # Continue in a later turn: uvloop would read 32 times in a row.
                self.outlet.pause_reading()
                self.turns.call(self.outlet.resume_reading)
            return
        if self._deadline is None and self.conn.awaits_head:
            self._await_head()
        super().data_received(data)
        if self.conn.runs_ahead(_AHEAD_BYTES):
            # uvicorn stops reading until it has answered, and so would not notice a disconnect.
            self.flow.resume_reading()
        self._keep_time()

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends no more; true keeps the connection open to finish the answer."""
        if self._completes or (self.outlet.is_full and self.outlet.is_closing()):
            self.outlet.close()
            return True
        return False

    def handle_events(self) -> None:
        """Handle what has arrived: as much as fits in this turn, the rest in later turns."""
        if self._awaits_turn:
            return
        self.conn.begin_turn(self._next_chunks)
        super().handle_events()
        if self.scope is not None and "unroll.abort" not in self.scope:
            hooks = {
                "unroll.abort": self.outlet.abort,
                "unroll.has_room": self.unsent.has_room,
                "unroll.is_gone": self.outlet.is_closing,
                "unroll.on_gone": self.on_gone,
            }
            self.scope.update(hooks)  # type: ignore[typeddict-item]
        if self.conn.is_cut and not self.outlet.is_closing():
            self._awaits_turn = True
            self.flow.hold_reading()
            self.turns.call(self._go_on)

    def _go_on(self) -> None:
        self._awaits_turn = False
        if self.outlet.is_closing():
            return
        self._next_chunks = TURN_CHUNKS
        self.handle_events()
        self._next_chunks = FIRST_CHUNKS
        if not self._awaits_turn:
            self.flow.release_reading()
        self._keep_time()

    def pause_writing(self) -> None:
        """The transport's buffer is full."""
        self.outlet.pause()

    def resume_writing(self) -> None:
        """The transport's buffer has room again."""
        self.outlet.resume()

    def on_response_complete(self) -> None:
        """Continue with the next request, which may have arrived already, in whole or in part.

        Waits until the client has taken this answer: otherwise the next one would queue behind it.
        """
        self.answered_at = time.perf_counter()
        self._tell_gone = None
        if self.outlet.is_full and not self.outlet.is_closing():
            self._completes = True
            return
        super().on_response_complete()
        self._keep_time()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection; unsent bytes have waited for the keep-alive time already."""
        if not self.outlet.is_closing():
            self.outlet.unsent_for(self.timeout_keep_alive)

    def shutdown(self) -> None:
        """Close because the server ends."""
        super().shutdown()
        self.outlet.end_lingering()

    def send_400_response(self, msg: str) -> None:
        """Reject a malformed request; uvicorn calls this."""
        self.refuse(self.conn.refusal or BadRequest("the request is not HTTP/1.1"), log=msg)

    def _should_upgrade(self) -> bool:
        """Ignore upgrades (h2c, WebSocket) and answer in HTTP/1.1 (RFC 9110, 7.8)."""
        return False

    def on_gone(self, tell: Callable[[], None] | None) -> None:
        """Call `tell` once, in the event loop, if the client leaves before its answer is complete.

        If it has left already, that is in the next round. None: call nothing.
        """
        self._tell_gone = tell
        if tell is not None and self.cycle.disconnected:
            self.loop.call_soon(self._disconnected)

    def _disconnected(self) -> None:
        tell, self._tell_gone = self._tell_gone, None
        if tell is not None:
            tell()

    def _drained(self) -> None:
        self.flow.resume_writing()
        if self._completes:
            self._completes = False
            self.on_response_complete()

    def _given_up(self) -> None:
        self.logger.warning("disconnected a client that did not read its answer")
        self.app.state.metrics.refused(ClientGone.type)

    # --- places ---------------------------------------------------------------------------------

    def _fits(self) -> bool:
        """Whether there is a place for this connection; closes an idle one if that makes room."""
        most = self.settings.max_connections
        if len(self.connections) <= most:
            return True
        held = [x for x in self._others() if x.spare_since is None and not x.is_leaving]
        return len(held) < most or self._make_room(held)

    def _make_room(self, held: "list[BoundedProtocol]") -> bool:
        """Close the connection that has been idle longest; false if none is idle.

        Connections idle between requests go first, then streams that wait for their client.
        """
        idle = [x for x in held if x.timeout_keep_alive_task]
        if idle:
            # By `answered_at`: the timers cannot order many connections in one millisecond.
            min(idle, key=lambda x: x.answered_at).timeout_keep_alive_handler()
            return True
        longest = min(held, key=lambda x: x.still_since or float("inf"))
        still_s = self.loop.time() - (longest.still_since or float("inf"))
        if longest.give_way is None or still_s < self.settings.stream_yield_s:
            return False
        longest.give_way.set_result(None)
        longest.stand_still(None)
        return True

    def _bound_places(self) -> None:
        """Limit the spare places, too: the connection that has used one longest goes."""
        if len(self.connections) <= self.settings.max_connections + _SPARE_PLACES:
            return
        leaving = [x for x in self._others() if x.outlet.is_lingering]
        if leaving:
            min(leaving, key=lambda x: x.outlet.closing_since or 0.0).outlet.end_lingering()
            return
        spare = [x for x in self._others() if x.spare_since is not None and not x.is_leaving]
        if spare:
            min(spare, key=lambda x: x.spare_since or 0.0).refuse(self.too_many())

    def _others(self) -> "list[BoundedProtocol]":
        return [x for x in self.connections if isinstance(x, BoundedProtocol) and x is not self]

    @property
    def is_leaving(self) -> bool:
        """Whether it is closing, or its stream has been asked to end."""
        return self.outlet.is_closing() or (self.give_way is not None and self.give_way.done())

    def _check_place(self, request: h11.Request) -> ServiceError | None:
        """The error for a request on a spare place to any path that is not a health path."""
        if self.spare_since is None:
            return None
        if self._fits():
            self.spare_since = None
            self.conn.closes = False
            return None
        path = request.target.partition(b"?")[0].decode("ascii")
        path = path.removeprefix(self.settings.root_path).rstrip("/")
        return None if path in HEALTH else self.too_many()

    def too_many(self) -> ServiceError:
        """The error for a connection without a place."""
        limit = self.settings.max_connections
        return TooManyConnections(
            f"this server accepts at most {limit} connections", headers={"Retry-After": "1"}
        )

    # --- streams --------------------------------------------------------------------------------

    def expect_stream(self) -> None:
        """Treat the body as a stream: no deadline, and any number of chunks."""
        self._end_deadline()
        self.conn.expect_stream()
        # The kernel would buffer megabytes, and a closed stream would be noticed only after them.
        connection = self.outlet.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _STREAM_AHEAD_BYTES)

    def stand_still(self, give_way: "asyncio.Future[None] | None") -> None:
        """Note that the stream waits for its client with no work open; None: it continues.

        The stream must end once `give_way` is done.
        """
        if self.give_way is None or not self.give_way.done():
            self.give_way = give_way
        self.still_since = None if give_way is None else self.loop.time()

    # --- deadlines ------------------------------------------------------------------------------

    def _keep_time(self) -> None:
        """Start the deadline of a body when its head has ended; stop it when the body has."""
        if self.outlet.is_closing() or not self.conn.receives:
            self._end_deadline()
            self._awaits_body = False
        elif self.conn.began_body and not self._awaits_body:
            self._await_body()

    def _await_head(self) -> None:
        self._begin_deadline("the head of a request", self.settings.header_timeout_s)

    def _await_body(self) -> None:
        self._awaits_body = True
        # For routes whose bodies are streams; the application has not started to read yet.
        hooks = {"unroll.expect_stream": self.expect_stream, "unroll.stand_still": self.stand_still}
        self.scope.update(hooks)  # type: ignore[typeddict-item]
        self._begin_deadline("the body of a request", self.settings.body_timeout_s)

    def _begin_deadline(self, what: str, limit_s: float) -> None:
        self._end_deadline()
        error = ReceiptTimeout(f"{what} may take {limit_s:g} s to arrive")
        self._deadline = self.loop.call_later(limit_s, self._too_slow, error)

    def _end_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self, error: ServiceError) -> None:
        self._deadline = None
        if self.outlet.is_closing():
            return
        if self.conn.idle and self.spare_since is None:
            # No request has begun, so there is nothing to answer.
            self.outlet.close()
            return
        self.refuse(self.too_many() if self.conn.idle else error)

    def refuse(self, error: ServiceError, log: str = "") -> None:
        """Answer with a problem document and close; an answer that has begun is cut off."""
        self._end_deadline()
        if self.cycle is not None and not self.cycle.response_complete:
            # The application sees a disconnect, and anything that it still sends is dropped.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            self._disconnected()
        request_id = fresh_id(16)
        self.logger.info("rejected: %s (%s) %s", error.type, request_id, log)
        self.app.state.metrics.refused(error.type)
        if self.conn.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            self.outlet.close()
            return
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
        # Bypasses h11, which may be in its error state.
        self.outlet.write(line.encode("ascii") + content)
        self.outlet.close()


class _Flow(FlowControl):
    """uvicorn's flow control, which also stops reading while received bytes wait for their turn."""

    _is_held = False

    def hold_reading(self) -> None:
        """Stop reading, even if the application asks for more."""
        self._is_held = True
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def release_reading(self) -> None:
        """Read again when the application asks for more."""
        self._is_held = False
        if not self.read_paused and not self._transport.is_closing():
            self._transport.resume_reading()

    def resume_reading(self) -> None:
        """Read more for the application, unless reading is held."""
        self.read_paused = False
        if not self._is_held and not self._transport.is_closing():
            self._transport.resume_reading()
