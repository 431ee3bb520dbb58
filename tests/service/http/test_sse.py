"""Streams on the wire: heartbeats, clients that go or take nothing, errors after the first byte."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from service.app import create_app
from service.http.sse import ServerSentEvent
from service.settings import Settings
from service.tasks.language_model import LanguageModelEngine
from tests.bundles import in_memory, plain_files
from tests.fakes import FakeSession, Gate
from tests.service.events import parsed

BUNDLE = in_memory(*plain_files(characters="abcdefgh"), "abcdefgh")
BODY = {"prompt": "ab", "max_tokens": 50, "seed": 1, "stream": True}


class Call:
    """One request to the application, as the server makes it: message by message."""

    def __init__(self, app: Any, body: dict[str, Any]) -> None:
        self.sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.taking = asyncio.Event()
        self.taking.set()
        self._received: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        content = json.dumps(body).encode()
        self._received.put_nowait({"type": "http.request", "body": content, "more_body": False})
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/generate",
            "raw_path": b"/generate",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json"), (b"host", b"127.0.0.1")],
            "http_version": "1.1",
            "scheme": "http",
            "server": ("unroll", 80),
            "client": ("test", 1),
            "asgi": {"version": "3.0", "spec_version": "2.3"},
        }
        self.task = asyncio.create_task(app(scope, self._received.get, self._send))

    async def _send(self, message: dict[str, Any]) -> None:
        await self.taking.wait()
        self.sent.put_nowait(message)

    async def chunk(self) -> bytes:
        """The next part of the answer's body."""
        while (message := await asyncio.wait_for(self.sent.get(), 20))["type"] != (
            "http.response.body"
        ):
            pass
        body: bytes = message["body"]
        return body

    def close(self) -> None:
        """The client goes."""
        self._received.put_nowait({"type": "http.disconnect"})

    async def end(self) -> None:
        await asyncio.wait_for(asyncio.gather(self.task, return_exceptions=True), 20)


@asynccontextmanager
async def served(
    session: FakeSession, **options: Any
) -> AsyncIterator[tuple[Any, LanguageModelEngine]]:
    settings = Settings(**{"prefix_cache_bytes": 0, **options})
    engine = LanguageModelEngine(BUNDLE, session, settings, precision="fp32")
    app = create_app(settings, [engine])
    async with app.router.lifespan_context(app):
        yield app, engine


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came true")


def test_a_stream_without_events_gets_heartbeats() -> None:
    async def main() -> None:
        gate = Gate()
        session = FakeSession(vocab_size=len(BUNDLE.vocab.tokens), gate=gate)
        async with served(session, heartbeat_s=0.01) as (app, _):
            call = Call(app, BODY)
            await asyncio.to_thread(gate.wait)
            await asyncio.to_thread(gate.step, 1)  # the prompt; then the first token is there
            first = await call.chunk()
            assert first.startswith(b"event: token\n")
            while (chunk := await call.chunk()) != b": heartbeat\n\n":
                assert chunk.startswith(b"event: token\n")
            gate.open()
            rest = b""
            while not rest.endswith(b"}\n\n") or b"event: done" not in rest:
                rest += await call.chunk()
            assert parsed(rest)[-1].name == "done"
            await call.end()

    asyncio.run(main())


def test_a_client_that_goes_ends_its_rows_within_a_step() -> None:
    async def main() -> None:
        gate = Gate()
        session = FakeSession(vocab_size=len(BUNDLE.vocab.tokens), gate=gate)
        async with served(session) as (app, engine):
            call = Call(app, BODY)
            await asyncio.to_thread(gate.wait)
            await asyncio.to_thread(gate.step, 2)
            await call.chunk()
            call.close()
            await call.end()
            runs = len(session.runs)
            gate.let_through()  # the run that stood at the gate
            await until(lambda: all(scheduler.free for scheduler in engine.workers.schedulers))
            assert len(session.runs) <= runs + 1
            gate.open()

    asyncio.run(main())


def test_a_client_that_goes_before_the_first_token_ends_its_rows() -> None:
    async def main() -> None:
        gate = Gate()
        session = FakeSession(vocab_size=len(BUNDLE.vocab.tokens), gate=gate)
        async with served(session) as (app, engine):
            call = Call(app, BODY)
            await asyncio.to_thread(gate.wait)
            call.close()
            await call.end()
            # The run at the gate is of the prompt; the first token's is of the same step.
            gate.let_through()
            gate.let_through()
            await until(lambda: all(scheduler.free for scheduler in engine.workers.schedulers))
            assert len(session.runs) <= 2
            gate.open()

    asyncio.run(main())


def test_a_client_that_takes_nothing_is_given_up() -> None:
    async def main() -> None:
        session = FakeSession(vocab_size=len(BUNDLE.vocab.tokens))
        async with served(session, request_timeout_s=0.2) as (app, engine):
            call = Call(app, BODY)
            await call.chunk()
            call.taking.clear()
            await call.end()
            await until(lambda: all(scheduler.free for scheduler in engine.workers.schedulers))

    asyncio.run(main())


def test_what_breaks_after_the_first_byte_is_the_last_event() -> None:
    async def main() -> None:
        vocab = BUNDLE.vocab
        gate = Gate()
        session = FakeSession(vocab_size=len(vocab), gate=gate)
        async with served(session, request_timeout_s=0.5) as (app, engine):
            call = Call(app, BODY)
            await asyncio.to_thread(gate.wait)
            await asyncio.to_thread(gate.step, 2)
            whole = b""
            # The engine stands still from here on, and the deadline comes.
            while b"event: error" not in whole:
                whole += await call.chunk()
            problem = json.loads(parsed(whole)[-1].data)
            assert problem["status"] == 504
            assert problem["type"] == "deadline-exceeded"
            await call.end()
            gate.open()
            await until(lambda: all(scheduler.free for scheduler in engine.workers.schedulers))

    asyncio.run(main())


def test_before_the_first_byte_it_is_an_answer_of_its_own() -> None:
    async def main() -> None:
        gate = Gate()
        session = FakeSession(vocab_size=len(BUNDLE.vocab.tokens), gate=gate)
        async with served(session, request_timeout_s=0.2) as (app, _):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
                answer = await http.post("/generate", json=BODY)
            assert answer.status_code == 504
            assert answer.headers["content-type"] == "application/problem+json"
            gate.open()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("event", "wire"),
    [
        (ServerSentEvent("{}"), b"data: {}\n\n"),
        (ServerSentEvent('"\u2028"', "token"), 'event: token\ndata: "\u2028"\n\n'.encode()),
    ],
)
def test_an_event_on_the_wire(event: ServerSentEvent, wire: bytes) -> None:
    assert event.encode() == wire
