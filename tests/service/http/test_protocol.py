"""A connection: what the application hears of a request, and what the client is sent."""

import asyncio
from collections.abc import Callable

from tests.service.http.connections import Receive, Scope, Send, Server, rounds

GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


async def answer_ok(send: Send) -> None:
    headers = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


def test_who_asks_is_told_once_that_the_client_has_left() -> None:
    async def main() -> list[str]:
        told: list[str] = []
        leaves = asyncio.Event()

        async def answer(scope: Scope, _: Receive, send: Send) -> None:
            on_gone: Callable[[Callable[[], None] | None], None] = scope["unroll.on_gone"]
            on_gone(lambda: told.append("replaced"))
            on_gone(lambda: told.append("left"))
            await leaves.wait()
            on_gone(lambda: told.append("has left"))
            await rounds()
            await answer_ok(send)

        protocol, _ = Server(answer).connect()
        protocol.data_received(GET)
        await rounds()
        protocol.connection_lost(None)
        assert told == ["left"]
        leaves.set()
        await rounds(10)
        return told

    assert asyncio.run(main()) == ["left", "has left"]


def test_nobody_is_told_after_the_answer_or_who_no_longer_wants_to_know() -> None:
    async def main() -> list[str]:
        told: list[str] = []
        leaves = asyncio.Event()

        async def answer(scope: Scope, _: Receive, send: Send) -> None:
            scope["unroll.on_gone"](lambda: told.append("left"))
            if scope["path"] == "/livez":
                await answer_ok(send)
            else:
                scope["unroll.on_gone"](None)
                await leaves.wait()

        protocol, client = Server(answer).connect()
        protocol.data_received(GET)
        await rounds()
        assert client.got.endswith(b"ok")
        protocol.data_received(GET.replace(b"/livez", b"/waits"))
        await rounds()
        protocol.connection_lost(None)
        leaves.set()
        await rounds()
        return told

    assert asyncio.run(main()) == []
