"""Server-sent events (WHATWG HTML, 9.2): streaming answers, with heartbeats while nothing comes."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response
from pydantic import BaseModel

from service.errors import ClientGone, ServiceError
from service.http.body import inlined_schema
from service.http.live import LiveResponse, client_gone
from service.observe.request_context import current_request

_HEARTBEAT = b": heartbeat\n\n"


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event. `data` must be a single line, such as JSON."""

    data: str
    event: str | None = None  # the event's name; None is a plain message

    def encode(self) -> bytes:
        """The bytes of the event in the stream."""
        name = "" if self.event is None else f"event: {self.event}\n"
        return f"{name}data: {self.data}\n\n".encode()


async def event_response(
    request: Request,
    events: AsyncGenerator[ServerSentEvent, None],
    on_error: Callable[[ServiceError], ServerSentEvent],
) -> Response:
    """A streaming answer with these events.

    Waits for the first event before the answer begins, so an error until then is answered with its
    own status. A later error ends the stream with the event of `on_error`. Raises ClientGone.
    """
    stream = _Stream(request, events, on_error)
    await stream.begin()
    return stream


class _Stream(LiveResponse):
    """Sends events one by one, and heartbeats while there are none."""

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
        """Wait for the first event. Raises the error that comes instead, or ClientGone."""
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
        """The events and heartbeats, encoded."""
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
        """Cancel the waiting tasks and end the work behind the events."""
        for task in (self._gone, self._next):
            task.cancel()
        await asyncio.wait((self._gone, self._next))
        if not self._next.cancelled():
            self._next.exception()
        await self._events.aclose()

    async def _arrival(self, timeout_s: float | None) -> None:
        """Wait for the next event, a disconnect or the timeout, whichever comes first."""
        waiting = (self._next, self._gone)
        await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)


async def _next(events: AsyncGenerator[ServerSentEvent, None]) -> ServerSentEvent | None:
    """The next event; None at the end."""
    return await anext(events, None)


def documented_events(
    message: Sequence[type[BaseModel]] = (),
    end: str | None = None,
    **named: type[BaseModel],
) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entry of an answer as server-sent events (`itemSchema` is one event).

    `message` are the schemas of events without a name, `named` those of events with one, and `end`
    is the text of the last event.
    """
    events = [_documented_event(None, schema) for schema in message]
    if end is not None:
        events.append({"properties": {"data": {"const": end}}, "required": ["data"]})
    events += [_documented_event(name, schema) for name, schema in named.items()]
    item = events[0] if len(events) == 1 else {"anyOf": events}
    return {200: {"content": {"text/event-stream": {"itemSchema": {"type": "object", **item}}}}}


def _documented_event(name: str | None, schema: type[BaseModel]) -> dict[str, Any]:
    data = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": inlined_schema(schema),
    }
    if name is None:
        return {"properties": {"data": data}, "required": ["data"]}
    return {"properties": {"event": {"const": name}, "data": data}, "required": ["event", "data"]}
