"""A client that sends random requests, disconnects from some at any point, and checks answers."""

import asyncio
import json
import random
import re
from collections import Counter, deque
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from bench.soak_requests import random_request
from bench.soak_tally import Tally
from bench.soak_wire import Models, Wire

_LEAVES = 0.12  # share of requests whose client disconnects before the end
_LEAVES_AFTER_S = 0.04  # on average
_STATES_KEPT = 20
_READ_BYTES = 65_536
# An error inside an answer with status 200: events and lines have their own errors.
_FAILED_INSIDE = re.compile(rb'"(?:status|code)": ?5\d\d\b')
_TOO_LATE = 504
_BEGIN_OF_ERRORS, _BEGIN_OF_FAILURES = 400, 500


class RandomTraffic:
    """Sends requests of every kind to one server and remembers the states it gets."""

    def __init__(
        self, url: str, session: aiohttp.ClientSession, tally: Tally, models: Models
    ) -> None:
        self._url = url
        self._session = session
        self._tally = tally
        self._models = models
        self._states: dict[str, deque[str]] = {}
        self.good: Counter[str] = Counter()  # good answers by kind

    async def ask(self, rng: random.Random) -> None:
        """Send one request; the client may disconnect at any time."""
        wire = random_request(rng, self._models, self._states)
        leaves = rng.random() < _LEAVES
        try:
            async with asyncio.timeout(rng.expovariate(1 / _LEAVES_AFTER_S) if leaves else None):
                status, body = await self._sent(wire, rng)
        except TimeoutError:
            kind = "clients that left" if leaves else f"{wire.kind}, never ended"
            self._tally.note(kind, good=leaves, told=_told(wire))
            return
        except aiohttp.ClientConnectionError as error:
            # A rejected body is not read to its end, so the client may miss the answer.
            refused = wire.outcome != "answered"
            self._tally.note(f"{wire.kind}, closed", good=refused, told=(repr(error), _told(wire)))
            return
        self.good[wire.kind] += status < _BEGIN_OF_ERRORS
        self._tally.note(
            wire.kind, good=is_right(wire, status, body), told=(status, _told(wire), body[:300])
        )
        if status < _BEGIN_OF_ERRORS and b'"state":' in body:
            self._remember(wire, body)

    async def _sent(self, wire: Wire, rng: random.Random) -> tuple[int, bytes]:
        headers = {} if wire.body is None else {"Content-Type": wire.content_type}
        if wire.timeout_s is not None:
            headers["X-Request-Timeout"] = f"{wire.timeout_s:g}"
        data: Any = wire.body
        if wire.body is not None and wire.pieces:
            data = _in_pieces(wire.body, wire.pieces, rng)
        url = f"{self._url}{wire.path}"
        async with self._session.request(wire.method, url, data=data, headers=headers) as answer:
            pieces = [piece async for piece in answer.content.iter_chunked(_READ_BYTES)]
            return answer.status, b"".join(pieces)

    def _remember(self, wire: Wire, body: bytes) -> None:
        """Keep the state handles in a plain answer of the native API."""
        if wire.path not in {"/generate", "/score", "/classify"} or not body.startswith(b"{"):
            return
        answer = json.loads(body)
        results = answer["results"]
        found = [x for result in results for x in result.get("choices", [result])]
        kept = self._states.setdefault(answer["model"], deque(maxlen=_STATES_KEPT))
        kept.extend(x["state"] for x in found if x.get("state"))


def is_right(wire: Wire, status: int, body: bytes) -> bool:
    """Whether the answer is allowed: nothing fails, and bad requests are rejected."""
    if status == _TOO_LATE and wire.timeout_s is not None:
        return True
    if status >= _BEGIN_OF_FAILURES:
        return False
    if wire.method == "POST" and wire.timeout_s is None and _FAILED_INSIDE.search(body):
        return False
    match wire.outcome:
        case "answered":
            return status < _BEGIN_OF_ERRORS
        case "refused":
            return status >= _BEGIN_OF_ERRORS
        case "either":
            return True


def _told(wire: Wire) -> str:
    return f"{wire.method} {wire.path} {(wire.body or b'')[:300]!r}"


async def _in_pieces(body: bytes, count: int, rng: random.Random) -> AsyncIterator[bytes]:
    places = sorted(rng.randrange(len(body) + 1) for _ in range(count - 1))
    for begin, end in zip([0, *places], [*places, len(body)], strict=True):
        if end > begin:
            yield body[begin:end]
            await asyncio.sleep(rng.uniform(0, 0.01))
