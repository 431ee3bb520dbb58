"""What every fault has in common: the server lives, answers the next good request, and counts."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from tests.end_to_end.server import Server

GOOD = {"model": "tiny-lstm", "text": "a cat"}
MARKER = "q7zmarkerz7q"


def goes_on(server: Server, within_s: float = 1.0) -> None:
    """The process is alive, and a good request is answered in a second."""
    assert server.process.poll() is None
    begun = time.monotonic()
    with server.client() as client:
        answer = client.post("/score", json=GOOD)
    assert answer.status_code == 200, answer.text
    assert time.monotonic() - begun < within_s


def problem_of(answer: httpx.Response, *statuses: int) -> dict[str, Any]:
    """The error, which is ours, has the request's id and nothing of what was sent."""
    assert answer.status_code in statuses, (answer.status_code, answer.text[:300])
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["request_id"] == answer.headers["X-Request-Id"]
    shown = answer.text + json.dumps(dict(answer.headers))
    assert MARKER not in shown
    assert "Traceback" not in shown
    return problem


def moved(before: Mapping[str, float], after: Mapping[str, float], name: str) -> float:
    """By how much a counter went up."""
    return after.get(name, 0.0) - before.get(name, 0.0)


@contextmanager
def counting(server: Server, kind: str, reason: str) -> Iterator[None]:
    """What happens inside counts as `kind` ("rejected", "cancelled") with this reason."""
    name = f'unroll_{kind}_total{{reason="{reason}"}}'
    before = server.samples()
    yield
    eventually(lambda: moved(before, server.samples(), name) >= 1)


def eventually(condition: Any, timeout_s: float = 20.0) -> None:
    """Wait until the condition holds, by polling."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)


def rows_in_use(server: Server) -> float:
    """Rows that run or wait, of all models."""
    found = server.samples()
    return sum(value for name, value in found.items() if name.startswith("unroll_rows{"))
