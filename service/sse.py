"""Server-sent events (WHATWG HTML, 9.2): answers that are written while they come about."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from service.errors import ClientGone, ServiceError

logger = logging.getLogger(__name__)

_HEARTBEAT = b": heartbeat\n\n"


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event. `data` is one line, as JSON is."""

    data: str
    event: str | None = None  # its name; None is a plain message

    def encode(self) -> bytes:
        """As it stands in the stream."""
        name = "" if self.event is None else f"event: {self.event}\n"
        return f"{name}data: {self.data}\n\n".encode()


async def event_response(
    request: Request,
    events: AsyncIterator[ServerSentEvent],
    on_error: Callable[[ServiceError], ServerSentEvent],
) -> Response:
    """An answer of these events.

    The first is awaited before the answer begins, so that what it raises is an ordinary problem.
    What is raised later ends the stream with the event of `on_error`. Raises ClientGone.
    """
    stream = _Stream(request, events, on_error)
    await stream.begin()
    return stream


class _Stream(Response):
    """Events one by one, each when the client has taken the one before, as far as sockets tell."""

    def __init__(
        self,
        request: Request,
        events: AsyncIterator[ServerSentEvent],
        on_error: Callable[[ServiceError], ServerSentEvent],
    ) -> None:
        # No proxy may keep or gather what is meant for now.
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(None, 200, headers, "text/event-stream; charset=utf-8")
        del self.headers["content-length"]
        self._events = events
        self._on_error = on_error
        self._settings = request.app.state.settings
        self._gone = asyncio.create_task(_gone(request.receive))
        self._next = asyncio.create_task(_next(events))

    async def begin(self) -> None:
        """Wait for the first event. Raises what comes in its place, and ClientGone."""
        try:
            await self._arrival(None)
            if not self._next.done():
                raise ClientGone("the client closed the connection")
            if (error := self._next.exception()) is not None:
                raise error
        except BaseException:
            await self._close()
            raise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Write the events (ASGI 3)."""
        head = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        try:
            await send(head)
            while (body := await self._chunk()) is not None:
                # A client that takes nothing for so long is as good as gone.
                async with asyncio.timeout(self._settings.request_timeout_s):
                    await send({"type": "http.response.body", "body": body, "more_body": True})
            if not self._gone.done():
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            logger.warning("a client took nothing of its stream for too long")
            abort(scope)
        finally:
            await self._close()

    async def _chunk(self) -> bytes | None:
        """The next event, or a heartbeat while there is none; None at the end."""
        await self._arrival(self._settings.heartbeat_s)
        if self._gone.done():
            return None
        if not self._next.done():
            return _HEARTBEAT
        try:
            event = self._next.result()
        except ServiceError as error:
            event = self._on_error(error)
        if event is None:
            return None
        self._next = asyncio.create_task(_next(self._events))
        return event.encode()

    async def _arrival(self, timeout_s: float | None) -> None:
        """Wait for the next event, for the client to go, or for so long."""
        waiting = (self._next, self._gone)
        await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)

    async def _close(self) -> None:
        """End everything, and with it the work behind the events."""
        for task in (self._gone, self._next):
            task.cancel()
        await asyncio.wait((self._gone, self._next))
        if not self._next.cancelled():
            self._next.exception()
        aclose = getattr(self._events, "aclose", None)
        if aclose is not None:
            await aclose()


def abort(scope: Scope) -> None:
    """End a connection at once, with what it has not taken; to close would wait for that."""
    end = scope.get("unroll.abort")
    if end is not None:
        end()


async def _next(events: AsyncIterator[ServerSentEvent]) -> ServerSentEvent | None:
    """The next event; None at the end."""
    return await anext(events, None)


async def _gone(receive: Receive) -> None:
    """Returns when the client has closed the connection; the body has been read before."""
    while (await receive())["type"] != "http.disconnect":
        pass
