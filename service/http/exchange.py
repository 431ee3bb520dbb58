"""A request and its answer, as the application sees them (ASGI 3).

A short answer is sent with its head in one piece; until then, it can still be replaced by an error.
"""

import asyncio
import logging
from collections.abc import Callable, MutableMapping
from typing import Any, Protocol

from starlette.types import ASGIApp, Message

from service.http.answer_heads import BODILESS, CONTINUE, FAILED, answer_head, framed
from service.http.request_heads import Head
from service.http.unsent import Outlet

# Above this, no more of a body is received until the application has taken what is there.
_HIGH_WATER_BYTES = 64 * 1024
# A body up to this size is copied behind its head rather than sent by itself.
_JOINED_BYTES = 32 * 1024

logger = logging.getLogger(__name__)


class Line(Protocol):
    """What an exchange needs from its connection."""

    outlet: Outlet
    is_full: bool  # the client has to read before more is sent

    async def room(self) -> None:
        """Wait until the client has read."""

    def standing(self) -> bytes:
        """The header lines of every answer."""

    def closes_after(self) -> bool:
        """Whether the connection ends with the answer that begins now."""

    def read_on(self) -> None:
        """Receive more of the body."""

    def answered(self) -> None:
        """The answer is complete."""

    def ended(self, exchange: "Exchange") -> None:
        """The application has returned."""


class Exchange:
    """One request of a connection: what has been received of it, and how far its answer is."""

    __slots__ = (
        "_closes",
        "_given",
        "_head",
        "_is_chunked",
        "_left",
        "_line",
        "_more",
        "_parts",
        "_size",
        "_skips",
        "_tell_gone",
        "_waiting",
        "_waits",
        "begun",
        "complete",
        "gone",
        "scope",
        "task",
    )

    def __init__(self, line: Line, head: Head, scope: MutableMapping[str, Any]) -> None:
        self._line = line
        self.scope = scope
        scope["unroll.on_gone"] = self.on_gone
        self._closes = head.closes
        self._skips = head.method == "HEAD"  # the answer has no body
        self._is_chunked = head.version == "1.1"  # without a length, else until the end
        self._waits = head.expects_continue
        self._more = head.length != 0  # more of the body is to come
        self._given = False  # the application has been given the end of the body
        self._parts: list[bytes] = []
        self._size = 0  # bytes in the parts
        self._waiting: asyncio.Future[None] | None = None
        self._head = b""  # not sent yet
        self._left: int | None = None  # bytes to come of an answer with a length
        self._tell_gone: Callable[[], None] | None = None
        self.begun = False  # the application has begun its answer
        self.complete = False
        self.gone = False  # the application sees that the client has left
        self.task: asyncio.Task[None] | None = None

    async def run(self, app: ASGIApp) -> None:
        """Call the application; after a failure, the client gets a 500 or a closed connection."""
        try:
            await app(self.scope, self.receive, self.send)
        except Exception:
            # Here and not by asyncio, which would log it without the id of the request.
            logger.exception("a request failed")
        finally:
            if not self.complete and not self.gone:
                # The application has failed or has been cancelled.
                if not self.begun or self._head:
                    self._line.outlet.write(FAILED)
                self._line.outlet.close()
            self._line.ended(self)
            # The scope refers to this object: without a cycle, both go now.
            self.scope = {}

    # --- the body -------------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """Whether the application must take some of the body before more is received."""
        return self._size > _HIGH_WATER_BYTES

    def take(self, piece: bytes, *, more: bool) -> None:
        """Keep a piece of the body for the application, the last one unless there is `more`."""
        self._more = more
        if self.complete:
            return
        if piece:
            self._waits = False
            self._parts.append(piece)
            self._size += len(piece)
        self._wake()

    async def receive(self) -> Message:
        """The next message to the application."""
        if self._waits and not self._line.outlet.is_closing():
            self._waits = False
            self._line.outlet.write(CONTINUE)
        while not self.gone and not self.complete:
            if self._parts or not (self._more or self._given):
                return self._piece()
            waiting = self._waiting = asyncio.get_running_loop().create_future()
            await waiting
        return {"type": "http.disconnect"}

    def _piece(self) -> Message:
        parts = self._parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        was_full = self.is_full
        self._parts, self._size = [], 0
        self._given = not self._more
        if was_full:
            self._line.read_on()
        return {"type": "http.request", "body": body, "more_body": self._more}

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    # --- the client's leaving -------------------------------------------------------------------

    def on_gone(self, tell: Callable[[], None] | None) -> None:
        """Call `tell` once, in the event loop, if the client leaves before its answer is complete.

        If it has left already, that is in the next round. None: call nothing.
        """
        self._tell_gone = tell
        if tell is not None and self.gone:
            asyncio.get_running_loop().call_soon(self._tell)

    def leave(self) -> None:
        """The client has left or was refused: the application sees a disconnect."""
        if self.complete or self.gone:
            return
        self.gone = True
        self._parts, self._size = [], 0
        self._wake()
        self._tell()

    def _tell(self) -> None:
        tell, self._tell_gone = self._tell_gone, None
        if tell is not None:
            tell()

    # --- the answer -----------------------------------------------------------------------------

    @property
    def is_replaceable(self) -> bool:
        """Whether nothing of the answer has been sent."""
        return not self.begun or bool(self._head)

    def close_after(self) -> None:
        """Close the connection after this answer."""
        self._closes = True

    async def send(self, message: Message) -> None:
        """Send a message of the application, once the client has read what was sent before."""
        if self._line.is_full and not self.gone:
            await self._line.room()
        if self.gone:
            return
        expected = "http.response.body" if self.begun else "http.response.start"
        if message["type"] != expected or self.complete:
            raise RuntimeError(f"expected {expected}, not {message['type']}")
        if self.begun:
            self._send_body(message.get("body", b""), more=message.get("more_body", False))
        else:
            self._begin(message)

    def _begin(self, message: Message) -> None:
        status = message["status"]
        head = answer_head(status, message.get("headers", ()), self._line.standing())
        self._closes = self._closes or head.closes or self._line.closes_after()
        if status in BODILESS:
            self._skips = True
        if head.length is not None or status in BODILESS:
            self._is_chunked = False
        elif not self._is_chunked:
            self._closes = True
        self._left = None if self._skips else head.length
        self._waits = False
        self._head = framed(head, closes=self._closes, chunked=self._is_chunked)
        self.begun = True
        if head.length is None and not self._skips:
            # A stream: the client may want its head before the first part.
            self._flush()

    def _send_body(self, body: bytes, *, more: bool) -> None:
        if self._skips:
            body = b""
        if self._left is not None:
            self._left -= len(body)
            if self._left < 0 or (self._left and not more):
                raise RuntimeError("the body of an answer has another length than announced")
        elif self._is_chunked and not self._skips:
            body = _chunk(body, more=more)
        if len(body) <= _JOINED_BYTES:
            body = self._head + body
            self._head = b""
        else:
            self._flush()
        if body:
            self._line.outlet.write(body)
        if not more:
            self._complete()

    def _flush(self) -> None:
        if self._head:
            self._line.outlet.write(self._head)
            self._head = b""

    def _complete(self) -> None:
        self.complete = True
        self._parts, self._size = [], 0
        self._tell_gone = None
        self._wake()
        if self._closes:
            self._line.outlet.close()
        self._line.answered()


def _chunk(body: bytes, *, more: bool) -> bytes:
    """A part of an answer without a length (RFC 9112, 7.1)."""
    whole = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
    return whole if more else whole + b"0\r\n\r\n"
