"""HTTP/1.1 with limits: deadlines for slow requests, a maximum of connections, bounded answers.

uvicorn's own protocols have no deadline for a request that arrives slowly or an answer that nobody
reads; the one on httptools accepts headers of any size, and h11 takes longer than many answers.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Mapping
from enum import Enum, auto
from typing import Any, cast
from urllib.parse import unquote

from fastapi import FastAPI
from uvicorn.config import Config
from uvicorn.protocols.utils import get_local_addr, get_remote_addr, is_ssl
from uvicorn.server import ServerState

from service.errors import ClientGone, ReceiptTimeout, ServiceError
from service.http.answer_heads import refusal, standing_lines
from service.http.deadline import Deadline
from service.http.exchange import Exchange
from service.http.gateway import HEALTH
from service.http.places import Place, Places
from service.http.received import FIRST_CHUNKS, TURN_CHUNKS, Received, State
from service.http.request_heads import Head
from service.http.turns import Turns
from service.http.unsent import Outlet, Unsent
from service.observe.trace_context import fresh_id
from service.settings import Settings

# Bytes read ahead of the request that is being answered; after that, reading stops.
_AHEAD_BYTES = 64 * 1024
# The kernel's receive buffer for a body that is a stream.
_STREAM_AHEAD_BYTES = 128 * 1024
_ASGI = {"version": "3.0", "spec_version": "2.3"}

logger = logging.getLogger("uvicorn.error")


class _Awaits(Enum):
    """What the client has a deadline for."""

    NOTHING = auto()
    HEAD = auto()
    BODY = auto()
    NEXT = auto()  # the next request; the first one is awaited as HEAD


class BoundedProtocol(asyncio.Protocol):
    """For uvicorn's `http` option. The application must be the unwrapped one of `create_app`."""

    outlet: Outlet
    place: Place

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.app = cast("FastAPI", config.loaded_app)
        state = self.app.state
        self.settings: Settings = state.settings
        self.turns: Turns = state.turns
        self.unsent: Unsent = state.unsent
        self.places: Places = state.places
        self.loop = _loop or asyncio.get_running_loop()
        self.server_state = server_state
        self.received = Received(self.settings)
        self.exchange: Exchange | None = None  # None between requests
        self.is_full = False
        self._app_state = app_state
        self._keep_alive_s = config.timeout_keep_alive
        self._deadline = Deadline(self.loop, self._too_slow)
        self._awaits = _Awaits.NOTHING
        self._awaits_turn = False
        self._reads = True
        self._room: asyncio.Future[None] | None = None
        self._discarded = 0  # bytes received after the end
        self._standing: tuple[list[tuple[bytes, bytes]] | None, bytes] = (None, b"")
        self._scope: Mapping[str, Any] = {}  # what is the same for each request

    # --- asyncio's interface of a protocol ------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept the connection; if there are too many, only for requests to health paths."""
        line = cast("asyncio.Transport", transport)
        self.server_state.connections.add(self)  # type: ignore[arg-type]
        self.outlet = Outlet(
            line,
            self.unsent,
            timeout_s=self.settings.request_timeout_s,
            on_full=self._filled,
            on_drained=self._drained,
            on_given_up=self._given_up,
            lingers=lambda: self.received.receives or self.received.state is State.BROKEN,
        )
        self._scope = {
            "type": "http",
            "asgi": _ASGI,
            "server": get_local_addr(line),
            "client": get_remote_addr(line),
            "scheme": "https" if is_ssl(line) else "http",
            "root_path": "",
            "unroll.abort": self.outlet.abort,
            "unroll.has_room": self.unsent.has_room,
            "unroll.is_gone": self.outlet.is_closing,
        }
        self.place = Place(self.outlet, close_idle=self._close_idle, refuse=self.refuse)
        self.places.take(self.place)
        self.received.closes = self.place.is_spare
        self._awaits = _Awaits.HEAD
        self._deadline.begin(self.settings.header_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Release everything that the connection holds."""
        self.server_state.connections.discard(self)
        self.places.leave(self.place)
        self._deadline.close()
        self.outlet.lost()
        if self.exchange is not None:
            self.exchange.leave()
        self._has_room()

    def data_received(self, data: bytes) -> None:
        """Take bytes; the deadline of the head starts at its first byte, the body's at its end."""
        if self.outlet.is_closing():
            self._discard(len(data))
            return
        self.received.receive(data)
        if not self._awaits_turn:
            self._proceed(FIRST_CHUNKS)

    def eof_received(self) -> bool:
        """The client sends no more; true keeps the connection open to finish the answer."""
        is_answered = self.exchange is not None and self.exchange.complete
        if self.outlet.is_full and (is_answered or self.outlet.is_closing()):
            self.outlet.close()
            return True
        return False

    def pause_writing(self) -> None:
        """The transport's buffer is full."""
        self.outlet.pause()

    def resume_writing(self) -> None:
        """The transport's buffer has room again."""
        self.outlet.resume()

    def shutdown(self) -> None:
        """Close because the server ends; uvicorn calls this."""
        if self.exchange is None or self.exchange.complete:
            self.outlet.close()
        else:
            self.exchange.close_after()
        self.outlet.end_lingering()

    # --- requests -------------------------------------------------------------------------------

    def _proceed(self, chunks: int) -> None:
        """Handle what has arrived: as much as fits in this turn, the rest in later turns."""
        received = self.received
        received.begin_turn(chunks)
        try:
            while (event := received.next_event()) is not None:
                if isinstance(event, Head):
                    self._begin(event)
                else:
                    self._take(event)
        except ServiceError as error:
            self.refuse(error)
            return
        if received.is_cut:
            self._awaits_turn = True
            self.turns.call(self._go_on)
        self.read_on()

    def _go_on(self) -> None:
        self._awaits_turn = False
        if not self.outlet.is_closing():
            self._proceed(TURN_CHUNKS)

    def _begin(self, head: Head) -> None:
        """Give a request to the application. Raises TooManyConnections."""
        raw_path, _, query = head.target.partition(b"?")
        path = raw_path.decode("ascii")
        if self.place.is_spare:
            self._check_place(path)
        scope = {
            **self._scope,
            "http_version": head.version,
            "method": head.method,
            "path": unquote(path) if "%" in path else path,
            "raw_path": raw_path,
            "query_string": query,
            "headers": head.headers,
            "unroll.headers": head.named,
            "unroll.idle_since": self.place.idle_since,
            "state": self._app_state.copy(),
        }
        self._awaits = _Awaits.NOTHING
        self._deadline.end()
        self.place.idle_since = None
        self.exchange = exchange = Exchange(self, head, scope)
        exchange.task = self.loop.create_task(exchange.run(self.app))
        self.server_state.tasks.add(exchange.task)

    def _take(self, piece: bytes) -> None:
        """Give a piece of the body to the application, unless the answer is complete already."""
        if (exchange := self.exchange) is not None:
            exchange.take(piece, more=self.received.is_in_body)
            if exchange.complete and not self.is_full:
                self._begin_next()

    def _begin_next(self) -> bool:
        """Go on to the next request; false if the rest of this one's body is still to come."""
        if self.received.is_in_body:
            return False
        self.exchange = None
        self.received.begin_next()
        return True

    def _check_place(self, path: str) -> None:
        """Raise TooManyConnections for a path that is not a health path, on a spare place."""
        if self.places.fits(self.place):
            self.place.spare_since = None
            self.received.closes = False
        elif path.removeprefix(self.settings.root_path).rstrip("/") not in HEALTH:
            raise self.places.too_many()

    def _discard(self, size: int) -> None:
        """Bytes after the end: read on for a moment, so that the client gets its answer."""
        self._discarded += size
        if self._discarded > self.settings.max_body_bytes:
            self.outlet.end_lingering()
        else:
            # Continue in a later turn: uvloop would read 32 times in a row.
            self.outlet.pause_reading()
            self.turns.call(self.outlet.resume_reading)

    def refuse(self, error: ServiceError) -> None:
        """Answer with a problem document and close; an answer that has begun is cut off."""
        self._deadline.end()
        exchange = self.exchange
        is_answerable = exchange is None or exchange.is_replaceable
        if exchange is not None:
            # The application sees a disconnect, and anything that it still sends is dropped.
            exchange.leave()
        request_id = fresh_id(16)
        logger.info("rejected: %s (%s)", error.type, request_id)
        self.app.state.metrics.refused(error.type)
        if is_answerable:
            self.outlet.write(refusal(error, request_id))
        self.outlet.close()

    # --- what an exchange needs -----------------------------------------------------------------

    def standing(self) -> bytes:
        """The header lines of every answer."""
        headers, lines = self._standing
        if headers is not self.server_state.default_headers:
            # uvicorn makes a new list every second, for Date.
            headers = self.server_state.default_headers
            lines = standing_lines(headers)
            self._standing = (headers, lines)
        return lines

    def closes_after(self) -> bool:
        """Whether the connection ends with the answer that begins now."""
        received, lifecycle = self.received, self.app.state.lifecycle
        return received.closes or received.leaves_much or lifecycle.phase != "serving"

    async def room(self) -> None:
        """Wait until the client has read."""
        waiting = self._room = self.loop.create_future()
        await waiting

    def answered(self) -> None:
        """Continue with the next request, which may have arrived already, in whole or in part.

        Waits until the client has taken this answer: otherwise the next one would queue behind it.
        """
        self.server_state.total_requests += 1
        if self.is_full or self.outlet.is_closing():
            return
        if self._begin_next() and not self.received.idle:
            self._proceed(FIRST_CHUNKS)
        else:
            self.read_on()

    def ended(self, exchange: Exchange) -> None:
        """The application has returned."""
        task, exchange.task = exchange.task, None
        if task is not None:
            self.server_state.tasks.discard(task)

    # --- unsent bytes ---------------------------------------------------------------------------

    def _filled(self) -> None:
        self.is_full = True

    def _drained(self) -> None:
        self._has_room()
        is_answered = self.exchange is not None and self.exchange.complete
        if is_answered and not self.outlet.is_closing() and self._begin_next():
            self._proceed(FIRST_CHUNKS)

    def _has_room(self) -> None:
        self.is_full = False
        waiting, self._room = self._room, None
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def _given_up(self) -> None:
        logger.warning("disconnected a client that did not read its answer")
        self.app.state.metrics.refused(ClientGone.type)

    # --- reading and deadlines ------------------------------------------------------------------

    def expect_stream(self) -> None:
        """Treat the body as a stream: no deadline, and any number of chunks."""
        self._deadline.end()
        self.received.expect_stream()
        # The kernel would buffer megabytes, and a closed stream would be noticed only after them.
        connection = self.outlet.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _STREAM_AHEAD_BYTES)

    def read_on(self) -> None:
        """Read on, or stop, and set the deadline of what the client has to send now."""
        if self.outlet.is_closing():
            self._deadline.end()
            return
        exchange, received = self.exchange, self.received
        # Reads ahead while a request is answered: otherwise a disconnect would not be noticed.
        reads = not (
            self._awaits_turn
            or (exchange is not None and exchange.is_full)
            or (received.state is State.NEXT and received.ahead_bytes >= _AHEAD_BYTES)
        )
        if reads is not self._reads:
            self._reads = reads
            if reads:
                self.outlet.resume_reading()
            else:
                self.outlet.pause_reading()
        self._keep_time()

    def _keep_time(self) -> None:
        received = self.received
        if received.state is State.NEXT:
            awaited, limit_s = _Awaits.NOTHING, None
        elif received.state is not State.HEAD:
            awaited, limit_s = _Awaits.BODY, self.settings.body_timeout_s
        elif not received.idle:
            awaited, limit_s = _Awaits.HEAD, self.settings.header_timeout_s
        elif self._awaits is _Awaits.HEAD:
            return  # no request has come yet
        else:
            awaited, limit_s = _Awaits.NEXT, self._keep_alive_s
        if awaited is self._awaits:
            return
        self._awaits = awaited
        self.place.idle_since = time.perf_counter() if awaited is _Awaits.NEXT else None
        if limit_s is None:
            self._deadline.end()
        else:
            self._deadline.begin(limit_s)
        if awaited is _Awaits.BODY and self.exchange is not None:
            # For routes whose bodies are streams; the application has not started to read yet.
            self.exchange.scope["unroll.expect_stream"] = self.expect_stream
            self.exchange.scope["unroll.stand_still"] = self.place.stand_still

    def _close_idle(self) -> None:
        """Close an idle connection; unsent bytes have waited for the keep-alive time already."""
        if not self.outlet.is_closing():
            self.outlet.unsent_for(self._keep_alive_s)

    def _too_slow(self) -> None:
        awaited, self._awaits = self._awaits, _Awaits.NOTHING
        if self.outlet.is_closing():
            return
        if awaited is _Awaits.NEXT:
            self._close_idle()
        elif not self.received.idle:
            self.refuse(self._receipt_timeout(awaited))
        elif self.place.is_spare:
            self.refuse(self.places.too_many())
        else:
            # No request has begun, so there is nothing to answer.
            self.outlet.close()

    def _receipt_timeout(self, awaited: _Awaits) -> ReceiptTimeout:
        is_head = awaited is _Awaits.HEAD
        limit_s = self.settings.header_timeout_s if is_head else self.settings.body_timeout_s
        what = "head" if is_head else "body"
        return ReceiptTimeout(f"the {what} of a request may take {limit_s:g} s to arrive")
