"""Answers that are written while they come about, each part when the one before was taken."""

import asyncio
import logging
from collections.abc import AsyncGenerator

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from service.errors import ClientGone
from service.observe.request_context import current_request

logger = logging.getLogger(__name__)


class LiveResponse(Response):
    """A body in parts. A client that takes nothing for the time of a request is given up."""

    def __init__(self, request: Request, media_type: str) -> None:
        # No proxy may keep or gather what is meant for now.
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(None, 200, headers, media_type)
        del self.headers["content-length"]
        self._timeout_s: float = request.app.state.settings.request_timeout_s

    def parts(self) -> AsyncGenerator[bytes, None]:
        """What is written; it ends early where the client has gone."""
        raise NotImplementedError

    async def close(self) -> None:
        """End what is behind the parts, written to their end or not."""
        raise NotImplementedError

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Write the parts (ASGI 3)."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for part in self.parts():
                async with asyncio.timeout(self._timeout_s):
                    await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            logger.warning("a client took nothing of its stream for too long")
            current_request().outcome = ClientGone.type
            # To close would wait until it takes what it has been sent.
            abort = scope.get("unroll.abort")
            if abort is not None:
                abort()
        finally:
            await self.close()


async def client_gone(receive: Receive) -> None:
    """Returns when the client has closed the connection; the body has been read before."""
    while (await receive())["type"] != "http.disconnect":
        pass
