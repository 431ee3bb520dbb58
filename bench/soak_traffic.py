"""Mixed traffic for the soak test: random requests, requests with known answers, and bad clients.

A known answer is the one that the same request got alone, before the traffic began. Bad clients
disconnect in the middle or stop reading.
"""

import asyncio
import json
import random
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from bench.soak_random import RandomTraffic
from bench.soak_tally import Tally
from bench.soak_wire import Models

LANGUAGE_MODELS = ("alice-lstm", "alice-gru", "alice-rnn")
PAIR_MODELS = ("g2p-en", "strings-en-de")
# Of random weights (`bench.label_models`).
CLASSIFIERS, TAGGERS = ("text-1x128",), ("character-1x128",)
MODELS = Models(LANGUAGE_MODELS, PAIR_MODELS, CLASSIFIERS, TAGGERS)
MOST_PAUSE_S = 0.1  # between two requests of a client: a load, but no overload
_PROMPTS = ("Alice was ", "The Queen said ", "Off with ", "")
_TEXTS = ("the white rabbit", "the whjte rabbit", "", "a mad tea-party", "é ☃ 兎")
_SOURCES = ("unroll", "recurrent", "alice", "rabbit")
_SEEDS = range(4)
_STREAMED = {"/generate", "/translate"}  # token by token
_LONG: dict[str, object] = {"max_tokens": 3000, "n": 4, "temperature": 1.5}
_JSON = {"Content-Type": "application/json"}
_BAD: tuple[tuple[str, dict[str, str], bytes, int], ...] = (
    ("/generate", _JSON, b"{", 400),
    ("/generate", _JSON, b'{"prompt": 8, "model": "alice-lstm"}', 422),
    ("/generate", _JSON, b'{"prompt": "x", "model": "nobody"}', 404),
    ("/generate", _JSON, b'{"prompt": "x", "model": "alice-lstm", "max_tokens": 1000000}', 422),
    ("/generate", {"Content-Type": "text/html"}, b"x", 415),
    ("/score", _JSON, b'{"text": "\\ud800", "model": "alice-gru"}', 422),
    ("/translate", _JSON, b'{"source": ["a"], "model": "g2p-en", "beam_size": 1000}', 422),
    ("/nowhere", _JSON, b"{}", 404),
)


@dataclass(frozen=True, slots=True)
class Case:
    """A request whose answer is known: its path and body."""

    path: str
    body: dict[str, Any]


def cases() -> list[Case]:
    """All requests with known answers; those that sample have a seed."""
    found = []
    for model in LANGUAGE_MODELS:
        for seed in _SEEDS:
            options = {"model": model, "seed": seed, "max_tokens": 20 + 40 * seed, "n": 1 + seed}
            found += [Case("/generate", {"prompt": prompt, **options}) for prompt in _PROMPTS]
        found.append(Case("/score", {"model": model, "text": list(_TEXTS)}))
        found.append(Case("/score", {"model": model, "text": list(_TEXTS), "context": "Alice "}))
    for beam_size in (1, 5):
        for model in PAIR_MODELS:
            body = {"model": model, "source": list(_SOURCES), "beam_size": beam_size}
            found.append(Case("/translate", body))
    for path, models in (("/classify", CLASSIFIERS), ("/tag", TAGGERS)):
        found += [Case(path, {"model": model, "text": list(_TEXTS)}) for model in models]
    return found


class Traffic:
    """Clients of one server."""

    def __init__(self, url: str, session: aiohttp.ClientSession, tally: Tally, key: str) -> None:
        self._url = url
        self._key = key
        self._session = session
        self._tally = tally
        self._known: list[tuple[Case, list[Any]]] = []
        self.random = RandomTraffic(url, session, tally, MODELS)
        self.ending = asyncio.Event()

    async def learn(self) -> None:
        """Send every request once, alone; later answers must be the same."""
        for case in cases():
            async with self._session.post(f"{self._url}{case.path}", json=case.body) as answer:
                answer.raise_for_status()
                self._known.append((case, (await answer.json())["results"]))

    async def crowd(self, clients: int) -> None:
        """Let all clients stop reading at the same time, twice: the worst coincidence.

        The memory that only this needs is then taken at the start, and does not show as a slope
        when it happens later by chance.
        """
        for number in range(2 * clients, 4 * clients, clients):
            seeds = range(number, number + clients)
            await asyncio.gather(*(self._stalling(random.Random(seed)) for seed in seeds))

    async def client(self, seed: int) -> None:
        """Send one request after another, of random kinds, until the end."""
        rng = random.Random(seed)
        kinds: Sequence[tuple[Callable[[random.Random], Awaitable[None]], float]] = (
            (self.random.ask, 80), (self._plain, 6), (self._streamed, 3), (self._lines, 3),
            (self._bad, 2), (self._leaving, 3), (self._stalling, 0.1),
        )  # fmt: skip
        while not self.ending.is_set():
            (kind,) = rng.choices([x for x, _ in kinds], [weight for _, weight in kinds])
            try:
                await kind(rng)
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                self._tally.note(kind.__name__, good=False, told=repr(error))
            await asyncio.sleep(rng.uniform(0, MOST_PAUSE_S))

    async def _plain(self, rng: random.Random) -> None:
        case, known = rng.choice(self._known)
        async with self._session.post(f"{self._url}{case.path}", json=case.body) as answer:
            told = await answer.json()
            good = answer.status == 200 and told["results"] == known
            self._tally.note(f"{case.path} plain", good=good, told=(answer.status, case, told))

    async def _streamed(self, rng: random.Random) -> None:
        """Stream `/generate` or `/translate`; the pieces must make the known text."""
        case, known = rng.choice([x for x in self._known if x[0].path in _STREAMED])
        pieces: dict[tuple[int, int], str] = {}
        event, done = "", None
        body = case.body | {"stream": True}
        async with self._session.post(f"{self._url}{case.path}", json=body) as answer:
            async for raw in answer.content:
                line = raw.decode().rstrip("\n")
                if line.startswith("event: "):
                    event = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    data = json.loads(line.removeprefix("data: "))
                    if event == "token" and case.path == "/generate":
                        at = (data["index"], data["choice"])
                        pieces[at] = pieces.get(at, "") + data["text"]
                    elif event != "token":
                        done = data
            status = answer.status
        if case.path == "/generate":
            expected = {
                (i, j): choice["text"]
                for i, result in enumerate(known)
                for j, choice in enumerate(result["choices"])
                if choice["text"]
            }
            # A text that ends at once gives an event without text.
            pieces = {at: text for at, text in pieces.items() if text}
            good = status == 200 and event == "done" and pieces == expected
        else:
            good = status == 200 and done is not None and done.get("results") == known
        self._tally.note(f"{case.path} streamed", good=good, told=(status, event, case))

    async def _lines(self, rng: random.Random) -> None:
        """Send NDJSON in pieces; each line must get the same number as in the plain request."""
        case, known = rng.choice([x for x in self._known if x[0].path == "/score"])
        fields = {"context": case.body["context"]} if "context" in case.body else {}
        lines = [json.dumps({"text": text, **fields}) + "\n" for text in case.body["text"]]

        async def body() -> Any:
            for line in lines:
                data = line.encode()
                half = rng.randrange(len(data))
                yield data[:half]
                await asyncio.sleep(rng.uniform(0, 0.01))
                yield data[half:]

        url = f"{self._url}/score?model={case.body['model']}"
        headers = {"Content-Type": "application/x-ndjson"}
        async with self._session.post(url, data=body(), headers=headers) as answer:
            told = [json.loads(line) for line in (await answer.text()).splitlines()]
            found = [each.get("logprob") for each in told]
            good = answer.status == 200 and found == [each["logprob"] for each in known]
            self._tally.note("/score streamed", good=good, told=(answer.status, case, found))

    async def _bad(self, rng: random.Random) -> None:
        path, headers, body, status = rng.choice(_BAD)
        async with self._session.post(f"{self._url}{path}", data=body, headers=headers) as answer:
            problem = await answer.json(content_type=None)
            good = answer.status == status == problem["status"]
            self._tally.note("bad requests", good=good, told=(path, body, answer.status))

    async def _leaving(self, rng: random.Random) -> None:
        """A client that closes its connection while the server works."""
        _, writer = await self._long_request(rng)
        await asyncio.sleep(rng.uniform(0, 0.3))
        writer.transport.abort()
        self._tally.note("clients that left", good=True, told="")

    async def _stalling(self, rng: random.Random) -> None:
        """A client that stops reading, with a small window, and stays connected."""
        _, writer = await self._long_request(rng, stream=True, window=4096)
        for _ in range(rng.randint(50, 100)):
            if self.ending.is_set():
                break
            await asyncio.sleep(0.1)
        writer.transport.abort()
        self._tally.note("clients that stopped reading", good=True, told="")

    async def _long_request(
        self, rng: random.Random, *, stream: bool | None = None, window: int | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A `/generate` that takes seconds, over a connection of its own."""
        host, _, port = self._url.removeprefix("http://").partition(":")
        connection = socket.socket()
        connection.setblocking(False)
        if window is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        await asyncio.get_running_loop().sock_connect(connection, (host, int(port)))
        # The reader takes a little and then stops: the rest stays in the socket.
        reader, writer = await asyncio.open_connection(sock=connection, limit=1024)
        streams = rng.random() < 0.5 if stream is None else stream
        prompt = "".join(rng.choices("abcdefgh ", k=20))  # random, so that no prefix is cached
        model = rng.choice(LANGUAGE_MODELS)
        body = json.dumps({"model": model, "prompt": prompt, "stream": streams, **_LONG}).encode()
        head = (
            f"POST /generate HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {self._key}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        await writer.drain()
        return reader, writer
