"""A body that is answered while it comes, piece by piece."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.types import Message, Receive

from service.errors import ClientGone, DeadlineExceeded, QueueFull, TooManyConnections
from service.http.turns import Turns
from service.observe.request_context import current_request

# A stream waits for room in a full queue and asks again this often.
_RETRY_S = 0.05

Result = TypeVar("Result")


class StreamedBody:
    """The pieces of a body; one is received ahead, so that a disconnect is noticed."""

    def __init__(self, request: Request) -> None:
        self._receive = request.receive
        # Tells the connection, if there is one, that the stream waits for its client.
        self._stand_still: Callable[[asyncio.Future[None] | None], None] = request.scope.get(
            "unroll.stand_still", lambda _: None
        )
        # A disconnect is hidden behind a piece that has arrived; the connection knows of it.
        self._has_gone: Callable[[], bool] = request.scope.get("unroll.is_gone", lambda: False)
        self._turns: Turns = request.app.state.turns
        self._idle_s = request.app.state.settings.stream_idle_s
        self._ended = False
        self._ahead = asyncio.create_task(_message(self._receive))

    async def piece(self) -> bytes | None:
        """The next piece, and None after the last. Raises ClientGone and DeadlineExceeded."""
        if self._ended:
            return None
        if not self._ahead.done():
            await self._arrival()
        message = self._ahead.result()
        if message["type"] == "http.disconnect":
            raise ClientGone("the client closed the connection")
        self._ended = not message.get("more_body", False)
        self._ahead = asyncio.create_task(_message(self._receive))
        data: bytes = message.get("body", b"")
        return data

    async def _arrival(self) -> None:
        """Wait for the next piece. Raises DeadlineExceeded and TooManyConnections."""
        give_way: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stand_still(give_way)
        try:
            waiting = (self._ahead, give_way)
            await asyncio.wait(waiting, timeout=self._idle_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._stand_still(None)
        if self._ahead.done():
            return
        if give_way.done():
            raise TooManyConnections("this stream stood still, and others need its place")
        raise DeadlineExceeded(f"a stream may stand still for {self._idle_s:g} s")

    @property
    def is_gone(self) -> bool:
        """Whether the client has closed the connection."""
        if self._has_gone():
            return True
        return self._ahead.done() and self._ahead.result()["type"] == "http.disconnect"

    async def turn(self) -> None:
        """Wait for the turn to do a small part of the work. Raises ClientGone."""
        await self._turns.take()
        if self.is_gone:
            raise ClientGone("the client closed the connection")

    async def _while_there(self, work: "asyncio.Task[Any]") -> None:
        """Wait for the work; it is cancelled when the client goes. Raises ClientGone."""
        try:
            while not work.done():
                waiting = {work} if self._ahead.done() else {work, self._ahead}
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if self.is_gone and not work.done():
                    raise ClientGone("the client closed the connection")
        finally:
            work.cancel()

    async def result_of(self, start: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """The result of the work, started again while the queue is full. Raises ClientGone."""
        while True:
            # A stream may take long; each part of it gets the limits of one request. The answers to
            # the parts before it have been sent.
            current_request().begin_again()
            current_request().keep_no_details()
            work = asyncio.create_task(start())
            await self._while_there(work)
            try:
                return await work
            except QueueFull:
                await asyncio.sleep(_RETRY_S)

    async def close(self) -> None:
        """Stop receiving ahead."""
        self._ahead.cancel()
        await asyncio.wait((self._ahead,))


async def _message(receive: Receive) -> Message:
    return await receive()
