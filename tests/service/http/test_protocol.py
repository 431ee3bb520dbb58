"""A connection: what the application hears of a request, and what the client is sent."""

import asyncio
import gc
import logging
import re
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest

from service.observe.request_context import RequestContext, current_request, enter_request
from tests.service.http.connections import Answer, Receive, Scope, Send, Server, rounds

GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
Result = TypeVar("Result")


def post(body: bytes, *lines: bytes) -> bytes:
    length = b"Content-Length: %d" % len(body)
    return b"\r\n".join([b"POST / HTTP/1.1", b"Host: x", length, *lines, b"", body])


def run(main: Coroutine[Any, Any, Result]) -> Result:
    return asyncio.run(main)


async def send_out(send: Send, body: bytes = b"ok", *headers: tuple[bytes, bytes]) -> None:
    length = (b"content-length", b"%d" % len(body))
    start = {"type": "http.response.start", "status": 200, "headers": [length, *headers]}
    await send(start)
    await send({"type": "http.response.body", "body": body})


async def whole_body(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return body + b" cut off"
        body += message["body"]
        more = message["more_body"]
    return body


async def echo(_: Scope, receive: Receive, send: Send) -> None:
    await send_out(send, await whole_body(receive))


async def path(scope: Scope, _: Receive, send: Send) -> None:
    await send_out(send, scope["path"].encode())


def answers(got: bytes) -> list[tuple[int, bytes]]:
    """Status and body of each answer with a length."""
    found = []
    while got:
        head, _, rest = got.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        assert length is not None, got
        found.append((int(head.split()[1]), rest[: int(length[1])]))
        got = rest[int(length[1]) :]
    return found


async def asked(answer: Answer, *data: bytes, **settings: Any) -> bytes:
    """What the client gets for its data."""
    protocol, client = Server(answer, **settings).connect()
    for part in data:
        if client.is_read and not client.is_gone:
            protocol.data_received(part)
        await rounds()
    await rounds()
    return client.got


@pytest.mark.parametrize("body", [b"", b"a", b"a" * 100_000])
@pytest.mark.parametrize("step", [1_000_000, 50_000, 100])
def test_a_body_is_received_whole_and_the_connection_lives_on(body: bytes, step: int) -> None:
    data = post(body) + CHUNKED + b"2\r\nbc\r\n0\r\n\r\n" + GET
    parts = [data[begin : begin + step] for begin in range(0, len(data), step)]
    assert answers(run(asked(echo, *parts))) == [(200, body), (200, b"bc"), (200, b"")]


def test_pipelined_requests_are_answered_one_by_one_in_order() -> None:
    running: list[str] = []

    async def answer(scope: Scope, _: Receive, send: Send) -> None:
        running.append(scope["path"])
        await rounds(2)
        assert len(running) == 1
        await send_out(send, scope["path"].encode())
        running.pop()

    data = b"".join(GET.replace(b"livez", b"%d" % i) for i in range(20))
    found = run(asked(answer, data, *[b""] * 20))
    assert answers(found) == [(200, b"/%d" % i) for i in range(20)]


def test_reading_stops_far_ahead_of_the_answer_and_goes_on_after_it() -> None:
    async def main() -> None:
        leaves = asyncio.Event()

        async def answer(_: Scope, __: Receive, send: Send) -> None:
            await leaves.wait()
            await send_out(send)

        protocol, client = Server(answer).connect()
        protocol.data_received(GET)
        await rounds()
        protocol.data_received(GET * 100)
        assert client.is_read
        count = 65536 // len(GET)
        protocol.data_received(GET * count)
        assert not client.is_read
        leaves.set()
        for _ in range(101 + count):
            await rounds()
        assert client.got.count(b"200 OK") == 101 + count
        assert client.is_read

    run(main())


def test_reading_stops_for_an_application_that_takes_nothing_of_the_body() -> None:
    async def main() -> None:
        takes = asyncio.Event()

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            await takes.wait()
            await echo(scope, receive, send)

        protocol, client = Server(answer).connect()
        protocol.data_received(post(b"a" * 200_000)[:100_000])
        assert not client.is_read
        await rounds()
        takes.set()
        await rounds()
        assert client.is_read
        protocol.data_received(post(b"a" * 200_000)[100_000:])
        await rounds()
        assert answers(client.got) == [(200, b"a" * 200_000)]

    run(main())


def test_the_client_is_told_to_go_on_once_and_only_if_the_body_is_wanted() -> None:
    async def unasked(_: Scope, __: Receive, send: Send) -> None:
        await send_out(send)

    head = post(b"abc", b"Expect: 100-Continue").removesuffix(b"abc")
    found = run(asked(echo, head, b"a", b"bc"))
    assert found.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
    assert found.endswith(b"\r\n\r\nabc")
    assert b"100 Continue" not in run(asked(echo, head + b"abc"))
    found = run(asked(unasked, head))
    assert b"100 Continue" not in found
    assert b"connection: close\r\n" in found


@pytest.mark.parametrize(
    ("head", "closes"),
    [
        (b"", False),
        (b"Connection: keep-alive", False),
        (b"Connection: Keep-Alive, CLOSE", True),
        (b"Connection: x\r\nConnection: close", True),
    ],
)
def test_the_connection_is_closed_where_the_client_says_so(head: bytes, closes: bool) -> None:
    lines = [head] if head else []
    found = run(asked(echo, post(b"a", *lines), post(b"b")))
    assert (b"connection: close\r\n" in found) == closes
    assert answers(found) == [(200, b"a"), (200, b"b")][: 2 - closes]


def test_http_1_0_gets_no_chunks_and_a_closed_connection() -> None:
    found = run(asked(parts, b"GET / HTTP/1.0\r\n\r\n"))
    assert b"chunked" not in found
    assert b"connection: close\r\n" in found
    assert found.endswith(b"\r\n\r\nabcd")


async def parts(_: Scope, __: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for part in (b"ab", b"", b"cd"):
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def test_an_answer_without_a_length_comes_in_chunks() -> None:
    found = run(asked(parts, GET))
    assert b"transfer-encoding: chunked\r\n" in found
    assert found.endswith(b"\r\n\r\n2\r\nab\r\n2\r\ncd\r\n0\r\n\r\n")


def test_an_answer_to_head_has_no_body_and_its_length() -> None:
    found = run(asked(path, GET.replace(b"GET", b"HEAD")))
    assert found.endswith(b"content-length: 6\r\n\r\n")


def test_a_header_with_a_line_end_is_not_sent() -> None:
    async def answer(_: Scope, __: Receive, send: Send) -> None:
        await send_out(send, b"ok", (b"x-id", b"a\r\nset-cookie: b"))

    assert run(asked(answer, GET)).startswith(b"HTTP/1.1 500 ")


async def fails(_: Scope, __: Receive, ___: Send) -> None:
    raise ValueError("a bug")


async def fails_behind_the_head(_: Scope, __: Receive, send: Send) -> None:
    headers = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    raise ValueError("a bug")


async def is_short(_: Scope, __: Receive, send: Send) -> None:
    headers = [(b"content-length", b"3")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ab"})


async def forgets(_: Scope, __: Receive, ___: Send) -> None:
    pass


@pytest.mark.parametrize("answer", [fails, fails_behind_the_head, is_short, forgets])
def test_a_failure_before_anything_was_sent_is_a_500(answer: Answer) -> None:
    found = run(asked(answer, GET))
    assert answers(found) == [(500, b"Internal Server Error")]


def test_a_failure_is_logged_once_and_with_its_request(caplog: pytest.LogCaptureFixture) -> None:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        enter_request(RequestContext(request_id="of-this-request"))
        await fails(scope, receive, send)

    asked_by: list[str] = []

    def note(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR:
            asked_by.append(current_request().request_id)
        return True

    caplog.handler.addFilter(note)
    gc.disable()
    try:
        run(asked(answer, GET))
    finally:
        gc.enable()
    errors = [x for x in caplog.records if x.levelno >= logging.ERROR]
    assert [str(x.exc_info[1]) for x in errors if x.exc_info] == ["a bug"]
    assert asked_by == ["of-this-request"]


def test_a_failure_behind_a_part_of_the_answer_closes_the_connection() -> None:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ab", "more_body": True})
        await fails(scope, receive, send)

    async def main() -> bytes:
        protocol, client = Server(answer).connect()
        protocol.data_received(GET)
        await rounds()
        assert client.is_gone
        return client.got

    assert run(main()).endswith(b"2\r\nab\r\n")


def test_a_request_leaves_nothing_for_the_garbage_collector() -> None:
    async def main() -> int:
        protocol, client = Server(echo).connect()
        gc.collect()
        gc.disable()
        try:
            for _ in range(50):
                protocol.data_received(post(b"a") + CHUNKED + b"2\r\nbc\r\n0\r\n\r\n")
                await rounds()
            assert len(answers(client.got)) == 100
            return gc.collect()
        finally:
            gc.enable()

    assert run(main()) < 50


# --- refusals -------------------------------------------------------------------------------------


def test_a_refusal_reaches_the_application_and_the_client() -> None:
    async def main() -> bytes:
        bodies: list[bytes] = []

        async def answer(_: Scope, receive: Receive, __: Send) -> None:
            bodies.append(await whole_body(receive))

        server = Server(answer)
        protocol, client = server.connect()
        protocol.data_received(CHUNKED + b"1\r\na\r\n")
        await rounds()
        protocol.data_received(b"no chunk\r\n")
        await rounds()
        assert bodies == [b"a cut off"]
        assert server.application.refused == ["bad-request"]
        return client.got

    found = run(main())
    assert found.startswith(b"HTTP/1.1 400 Bad request\r\n")
    assert b"\r\nConnection: close\r\n" in found


def test_a_broken_request_behind_a_good_one_is_refused_after_its_answer() -> None:
    found = run(asked(path, GET + b"no request\r\n\r\n"))
    assert [status for status, _ in answers(found)] == [200, 400]


@pytest.mark.parametrize(
    ("data", "status"),
    [(b"POST / HT", 408), (CHUNKED, 408), (post(b"abc")[:-1], 408), (b"", None), (GET, None)],
)
def test_who_is_too_slow_is_answered_where_a_request_has_begun(
    data: bytes, status: int | None
) -> None:
    async def main() -> list[tuple[int, bytes]]:
        answer = path if data == GET else echo
        limits = {"header_timeout_s": 0.02, "body_timeout_s": 0.02}
        protocol, client = Server(answer, keep_alive_s=0.02, **limits).connect()
        protocol.data_received(data)
        await rounds()
        before = len(client.got)
        async with asyncio.timeout(10):
            while not protocol.outlet.is_closing():
                await asyncio.sleep(0.01)
        return answers(client.got[before:])

    assert [found for found, _ in run(main())] == ([] if status is None else [status])


# --- who leaves -----------------------------------------------------------------------------------


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
            await send_out(send)

        protocol, _ = Server(answer).connect()
        protocol.data_received(GET)
        await rounds()
        protocol.connection_lost(None)
        assert told == ["left"]
        leaves.set()
        await rounds(10)
        return told

    assert run(main()) == ["left", "has left"]


def test_nobody_is_told_after_the_answer_or_who_no_longer_wants_to_know() -> None:
    async def main() -> list[str]:
        told: list[str] = []
        leaves = asyncio.Event()

        async def answer(scope: Scope, _: Receive, send: Send) -> None:
            scope["unroll.on_gone"](lambda: told.append("left"))
            if scope["path"] == "/livez":
                await send_out(send)
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

    assert run(main()) == []


def test_who_has_left_is_told_apart_while_the_body_is_received() -> None:
    async def main() -> list[bytes]:
        bodies: list[bytes] = []

        async def answer(_: Scope, receive: Receive, __: Send) -> None:
            bodies.append(await whole_body(receive))

        protocol, _ = Server(answer).connect()
        protocol.data_received(post(b"abc")[:-1])
        await rounds()
        protocol.connection_lost(ConnectionResetError())
        await rounds()
        return bodies

    assert run(main()) == [b"ab cut off"]
