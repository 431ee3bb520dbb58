"""Server-sent events (WHATWG HTML, 9.2): answers that are written while they come about."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from fastapi import Request, Response

from service.errors import ClientGone, ServiceError
from service.http.live import LiveResponse, client_gone
from service.observe.request_context import current_request

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
    events: AsyncGenerator[ServerSentEvent, None],
    on_error: Callable[[ServiceError], ServerSentEvent],
) -> Response:
    """An answer of these events.

    The first is awaited before the answer begins, so that what it raises is an ordinary problem.
    What is raised later ends the stream with the event of `on_error`. Raises ClientGone.
    """
    stream = _Stream(request, events, on_error)
    await stream.begin()
    return stream


class _Stream(LiveResponse):
    """Events one by one, with heartbeats where there are none."""

    def __init__(
        self,
        request: Request,
        events: AsyncGenerator[ServerSentEvent, None],
        on_error: Callable[[ServiceError], ServerSentEvent],
    ) -> None:
        super().__init__(request, "text/event-stream; charset=utf-8")
        self._events = events
        self._on_error = on_error
        self._heartbeat_s: float = request.app.state.settings.heartbeat_s
        self._gone = asyncio.create_task(client_gone(request.receive))
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
            await self.close()
            raise

    async def parts(self) -> AsyncGenerator[bytes, None]:
        """The events."""
        while True:
            await self._arrival(self._heartbeat_s)
            if self._gone.done():
                current_request().outcome = ClientGone.type
                return
            if not self._next.done():
                yield _HEARTBEAT
                continue
            try:
                event = self._next.result()
            except ServiceError as error:
                event = self._on_error(error)
            if event is None:
                return
            self._next = asyncio.create_task(_next(self._events))
            yield event.encode()

    async def close(self) -> None:
        """End everything, and with it the work behind the events."""
        for task in (self._gone, self._next):
            task.cancel()
        await asyncio.wait((self._gone, self._next))
        if not self._next.cancelled():
            self._next.exception()
        await self._events.aclose()

    async def _arrival(self, timeout_s: float | None) -> None:
        """Wait for the next event, for the client to go, or for so long."""
        waiting = (self._next, self._gone)
        await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)


async def _next(events: AsyncGenerator[ServerSentEvent, None]) -> ServerSentEvent | None:
    """The next event; None at the end."""
    return await anext(events, None)
