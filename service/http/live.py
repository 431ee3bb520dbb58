"""Streaming responses: each part is sent once the client has taken the one before."""

import asyncio
import logging
from collections.abc import AsyncGenerator

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from service.errors import ClientGone
from service.observe.request_context import current_request

logger = logging.getLogger(__name__)


class LiveResponse(Response):
    """A body in parts. A client that takes nothing for the request timeout is disconnected."""

    def __init__(self, request: Request, media_type: str) -> None:
        # Keeps proxies from caching the stream or buffering it.
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(None, 200, headers, media_type)
        del self.headers["content-length"]
        self._timeout_s: float = request.app.state.settings.request_timeout_s

    def parts(self) -> AsyncGenerator[bytes, None]:
        """The parts to send; ends early when the client has gone."""
        raise NotImplementedError

    async def close(self) -> None:
        """End the work behind the parts, whether or not all of them were sent."""
        raise NotImplementedError

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send the parts (ASGI 3)."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for part in self.parts():
                async with asyncio.timeout(self._timeout_s):
                    await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            logger.warning("disconnected a client that did not read its stream")
            current_request().outcome = ClientGone.type
            # Closing would wait until the client takes what was sent; aborting does not.
            abort = scope.get("unroll.abort")
            if abort is not None:
                abort()
        finally:
            await self.close()


async def client_gone(receive: Receive) -> None:
    """Wait until the client closes the connection. Call it after the body has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
