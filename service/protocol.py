"""HTTP/1.1 with bounds on what is received: connections, heads, and the time that they take.

uvicorn has no deadline for a request that comes slowly, and answers what is malformed in plain
text. This is its h11 protocol with both; httptools is no choice here, since it takes headers of any
size.
"""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.answers import problem_of
from service.errors import (
    BadRequest,
    HeadersTooLarge,
    ReceiptTimeout,
    ServiceError,
    TooManyConnections,
    UrlTooLong,
)
from service.settings import Settings
from service.trace_context import fresh_id

# What may come behind a request that is being answered, before no more is read.
_AHEAD_BYTES = 64 * 1024


class BoundedProtocol(H11Protocol):
    """For uvicorn's `http` option; the application is `create_app`'s, with nothing around it."""

    conn: "_Connection"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.settings: Settings = self.app.state.settings
        self.conn = _Connection(self.settings)
        self._deadline: asyncio.TimerHandle | None = None
        self._awaits_body = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, or refuse it where there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.settings.max_connections and not self._make_room():
            limit = self.settings.max_connections
            self._refuse(
                TooManyConnections(
                    f"this server holds {limit} connections at most",
                    headers={"Retry-After": "1"},
                )
            )
        else:
            self._await_head()

    def _make_room(self) -> bool:
        """Close the connection that has idled longest since its last answer; whether one has."""
        idle = {
            x.timeout_keep_alive_task.when(): x
            for x in self.connections
            if isinstance(x, BoundedProtocol)
            and x.timeout_keep_alive_task is not None
            and not x.transport.is_closing()
        }
        if not idle:
            return False
        idle[min(idle)].timeout_keep_alive_handler()
        return True

    def _should_upgrade(self) -> bool:
        """Upgrades (h2c, WebSocket) may be ignored: the answer is HTTP/1.1 (RFC 9110, 7.8)."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._end_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes; the first of a head begins the head's time, the end of it the body's."""
        if self._deadline is None and self.conn.awaits_head:
            self._await_head()
        super().data_received(data)
        if self.conn.runs_ahead(_AHEAD_BYTES):
            # uvicorn reads no further until it has answered, and so would not see the client go.
            self.flow.resume_reading()
        self._keep_time()

    def on_response_complete(self) -> None:
        """Go on to the next request, which may have come already, whole or in part."""
        super().on_response_complete()
        self._keep_time()

    def _keep_time(self) -> None:
        """A body's time begins with the end of its head, and ends with its own."""
        if self.scope is not None:
            self.scope.setdefault("unroll.abort", self.transport.abort)  # type: ignore[typeddict-item]
        if self.transport.is_closing() or not self.conn.receives:
            self._end_deadline()
            self._awaits_body = False
        elif self.conn.began_body and not self._awaits_body:
            self._await_body()

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls for a request that is none."""
        self._refuse(self.conn.refusal or BadRequest("the request is not HTTP/1.1"), log=msg)

    def lift_deadline(self) -> None:
        """The body is a stream, which ends when its client ends it."""
        self._end_deadline()

    # --- deadlines ------------------------------------------------------------------------------

    def _await_head(self) -> None:
        self._begin_deadline("the head of a request", self.settings.header_timeout_s)

    def _await_body(self) -> None:
        self._awaits_body = True
        # For routes whose bodies are streams; the application has not begun to read yet.
        self.scope["unroll.lift_deadline"] = self.lift_deadline  # type: ignore[typeddict-unknown-key]
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
        if self.transport.is_closing():
            return
        if self.conn.idle:
            # Nothing was asked, so nothing is answered.
            self.transport.close()
            return
        if self.cycle is not None and not self.cycle.response_complete:
            # The application sees its client gone, and what it still sends is dropped.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._refuse(error)

    def _refuse(self, error: ServiceError, log: str = "") -> None:
        """Answer with a problem, and close; an answer that has begun is cut off."""
        self._end_deadline()
        request_id = fresh_id(16)
        self.logger.info("refused: %s (%s) %s", error.type, request_id, log)
        self.app.state.metrics.refused(error.type)
        if self.conn.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            self.transport.close()
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
        # Past h11, whose state may be that of an error.
        self.transport.write(line.encode("ascii") + content)
        self.transport.close()


class _Connection(h11.Connection):
    """h11's state machine, with limits on a request's head."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        whole = settings.max_url_bytes + settings.max_header_bytes
        super().__init__(h11.SERVER, whole)
        self._line = 0  # bytes of a request line that has not ended
        self._bytes = 0  # of a head that has not ended
        self.refusal: ServiceError | None = None

    @property
    def awaits_head(self) -> bool:
        """Whether the next byte belongs to a request's head."""
        return self.their_state is h11.IDLE

    @property
    def idle(self) -> bool:
        """Whether no byte of a request has come."""
        return self.their_state is h11.IDLE and not self._bytes

    def runs_ahead(self, limit: int) -> bool:
        """Whether a request is whole, and what has come behind it is within the limit."""
        is_whole = self.their_state not in {h11.IDLE, h11.SEND_BODY, h11.ERROR}
        return is_whole and len(self.trailing_data[0]) < limit

    @property
    def began_body(self) -> bool:
        """Whether a head has come, and its body has not ended."""
        return self.their_state is h11.SEND_BODY

    @property
    def receives(self) -> bool:
        """Whether something of a request is still to come."""
        return self.began_body or (self.awaits_head and bool(self._bytes))

    def receive_data(self, data: bytes) -> None:
        """Count what a head takes, then h11's own."""
        if self.awaits_head:
            if self._line == self._bytes:
                self._line += (data.find(b"\n") + 1) or len(data)
            self._bytes += len(data)
        super().receive_data(data)

    def next_event(self) -> Any:
        """h11's next event. Raises RemoteProtocolError for a head that is over a limit, too."""
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            if error.error_status_hint == 431:
                self.refusal = self._too_large(self._line)
            raise
        if isinstance(event, h11.Request):
            self._bytes = self._line = 0
            self._check(event)
        return event

    def _check(self, request: h11.Request) -> None:
        names = [name for name, _ in request.headers]
        size = sum(len(name) + len(value) + 4 for name, value in request.headers)
        if len(request.target) > self._settings.max_url_bytes:
            self._refuse(self._too_large(len(request.target)))
        if size > self._settings.max_header_bytes:
            self._refuse(self._too_large(0))
        if b"content-length" in names and b"transfer-encoding" in names:
            # Two lengths: what one reads as a body another reads as the next request.
            self._refuse(BadRequest("Content-Length and Transfer-Encoding exclude each other"))

    def _too_large(self, line: int) -> ServiceError:
        if line > self._settings.max_url_bytes:
            return UrlTooLong(f"a URL may have {self._settings.max_url_bytes} bytes at most")
        limit = self._settings.max_header_bytes
        return HeadersTooLarge(f"the headers of a request may have {limit} bytes at most")

    def _refuse(self, error: ServiceError) -> None:
        self.refusal = error
        raise h11.RemoteProtocolError(error.detail, error.status)
