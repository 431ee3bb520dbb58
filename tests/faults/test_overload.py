"""Rows 10, 11, 14, 15 and 24 of the table of faults: more than fits, clients that stop or go."""

import asyncio
import json
import random
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest

from service.http.api_keys import new_key
from tests.end_to_end.server import NO_CERTIFICATES, Server, serve
from tests.faults.conftest import LIMITS
from tests.faults.support import counting, eventually, goes_on, moved, problem_of, rows_in_use

BIAS = {"\ue002": -100}
WORK: dict[str, Any] = {"model": "tiny-lstm", "prompt": "a cat", "seed": 2, "logit_bias": BIAS}
SETTINGS: dict[str, Any] = LIMITS | {
    "max_tokens": 100_000, "max_cost_tokens": 10_000_000, "max_rows": 8, "max_queue_requests": 32,
    "max_queue_tokens": 4_000_000, "request_timeout_s": 20,
}  # fmt: skip


@pytest.fixture(scope="module")
def small(tiny_models: Path) -> Iterator[Server]:
    """A server with a short queue."""
    with serve(tiny_models, **SETTINGS) as running:
        yield running


@pytest.fixture(scope="module")
def roomy(more_models: Path) -> Iterator[Server]:
    """One that takes large requests, to labelers too."""
    with serve(
        more_models, **(SETTINGS | {"max_inputs": 1000, "max_body_bytes": 2**22})
    ) as running:
        yield running


def test_a_burst_of_a_thousand_is_answered_or_refused_at_once(small: Server) -> None:
    ask = WORK | {"max_tokens": 300}
    with small.client() as client:
        expected = client.post("/generate", json=ask).json()["results"]

    async def burst() -> list[tuple[int, str, Any]]:
        # Not httpx, whose pool takes a time that grows with the square of what waits.
        connector = aiohttp.TCPConnector(limit=500)
        async with aiohttp.ClientSession(small.url, connector=connector) as http:

            async def one() -> tuple[int, str, Any]:
                async with http.post("/generate", json=ask) as answer:
                    found = await answer.json(content_type=None)
                    return answer.status, answer.headers.get("Retry-After", ""), found

            return await asyncio.gather(*(one() for _ in range(1000)))

    before = small.samples()
    answers = asyncio.run(burst())
    after = small.samples()
    statuses = Counter(status for status, _, _ in answers)
    assert set(statuses) == {200, 429}
    for status, retry_after, found in answers:
        if status == 429:
            assert 1 <= int(retry_after) <= 60
            assert found["type"] == "queue-full"
            assert "at most 32 requests" in found["detail"]
        else:
            assert found["results"] == expected
    assert moved(before, after, 'unroll_rejected_total{reason="queue-full"}') == statuses[429]
    goes_on(small)
    assert rows_in_use(small) == 0


def test_the_queue_is_bounded_by_tokens_too(tiny_models: Path) -> None:
    settings = SETTINGS | {"max_queue_tokens": 30_000, "max_rows": 1}
    with serve(tiny_models, **settings) as server:

        async def ask() -> list[int]:
            async with httpx.AsyncClient(
                base_url=server.url, timeout=60, verify=NO_CERTIFICATES
            ) as http:
                body = WORK | {"max_tokens": 10_000}
                timeout = {"X-Request-Timeout": "5"}
                posts = [http.post("/generate", json=body, headers=timeout) for _ in range(6)]
                return [x.status_code for x in await asyncio.gather(*posts)]

        assert 429 in asyncio.run(ask())
        goes_on(server, 8.0)


def test_work_that_is_too_late_is_dropped_and_its_rows_are_free(small: Server) -> None:
    endless = WORK | {"max_tokens": 100_000, "n": 8}
    with counting(small, "cancelled", "deadline-exceeded"), small.client() as client:
        begun = time.monotonic()
        answer = client.post("/generate", json=endless, headers={"X-Request-Timeout": "0.3"})
        problem_of(answer, 504)
        assert time.monotonic() - begun < 3
    eventually(lambda: rows_in_use(small) == 0)
    goes_on(small)


def test_labels_that_are_too_late_are_dropped_and_their_rows_are_free(roomy: Server) -> None:
    with roomy.client() as client:
        for path, body in (("/classify", MANY_LABELS), ("/tag", MANY_TAGS)):
            with counting(roomy, "cancelled", "deadline-exceeded"):
                answer = client.post(path, json=body, headers={"X-Request-Timeout": "0.1"})
                problem_of(answer, 504)
            eventually(lambda: rows_in_use(roomy) == 0)
    goes_on(roomy)


def test_what_waits_longer_than_it_may_is_not_run(small: Server) -> None:
    async def main() -> tuple[list[int], list[int]]:
        async with httpx.AsyncClient(
            base_url=small.url, timeout=60, verify=NO_CERTIFICATES
        ) as http:

            async def ask(body: dict[str, Any], timeout_s: float) -> int:
                headers = {"X-Request-Timeout": str(timeout_s)}
                return (await http.post("/generate", json=body, headers=headers)).status_code

            # All rows are taken for longer than the others may wait.
            first = asyncio.create_task(ask(WORK | {"max_tokens": 100_000, "n": 8}, 1.5))
            await asyncio.sleep(0.3)
            late = await asyncio.gather(*(ask(WORK | {"max_tokens": 5}, 0.2) for _ in range(10)))
            return late, [await first]

    name = 'unroll_tokens_total{kind="completion",model="tiny-lstm"}'
    before = small.samples()
    late, first = asyncio.run(main())
    assert (set(late), first) == ({504}, [504])
    assert moved(before, small.samples(), name) == 0
    goes_on(small)


def test_a_client_with_much_in_the_queue_does_not_hold_up_another(
    tiny_models: Path, tmp_path: Path
) -> None:
    keys = {name: new_key(name, "use") for name in ("greedy", "modest")}
    _, admin_key = new_key("watcher", "metrics")
    path = tmp_path / "keys"
    path.write_text("\n".join(x.line() for x in [*(k for _, k in keys.values()), admin_key]))
    settings = SETTINGS | {"api_keys_file": path, "max_rows": 2, "request_timeout_s": 60}
    with serve(tiny_models, **settings) as server:

        async def main() -> tuple[Counter[int], list[float], float]:
            async with httpx.AsyncClient(
                base_url=server.url, timeout=60, verify=NO_CERTIFICATES
            ) as http:

                async def ask(who: str, tokens: int) -> tuple[int, float]:
                    headers = {"Authorization": f"Bearer {keys[who][0]}"}
                    begun = time.monotonic()
                    body = WORK | {"max_tokens": tokens}
                    answer = await http.post("/generate", json=body, headers=headers)
                    return answer.status_code, time.monotonic() - begun

                begun = time.monotonic()
                greedy = [asyncio.create_task(ask("greedy", 4000)) for _ in range(60)]
                await asyncio.sleep(0.3)
                modest = [await ask("modest", 20) for _ in range(5)]
                whole = [await x for x in greedy]
                assert {status for status, _ in modest} == {200}
                statuses = Counter(status for status, _ in whole)
                return statuses, [x for _, x in modest], time.monotonic() - begun

        statuses, modest, whole_s = asyncio.run(main())
    # Half of the queue is the most that one of them may fill.
    assert statuses[429] >= 60 - 16 - 4
    assert statuses[200] >= 16
    # At most a piece of the other's before each of its own.
    assert sum(modest) < whole_s


# --- clients that go, and clients that do not read ------------------------------------------------


def request_bytes(path: str, body: bytes, content_type: str = "application/json") -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


ENDLESS = WORK | {"max_tokens": 100_000, "n": 8}
LONG_TEXT = {"model": "tiny-lstm", "text": ["a cat in a hat " * 6000] * 20}
MANY_LABELS = {"model": "tiny-forward", "text": ["a bed in a cab " * 6000] * 20}
MANY_TAGS = {"model": "tiny-chain", "text": ["a bed in a cab" * 14] * 580}
CALLS = {
    "generate": request_bytes("/generate", json.dumps(ENDLESS).encode()),
    "generate, streamed": request_bytes(
        "/generate", json.dumps(ENDLESS | {"stream": True}).encode()
    ),
    "score": request_bytes("/score", json.dumps(LONG_TEXT).encode()),
    "completions": request_bytes(
        "/v1/completions",
        json.dumps(
            {
                "model": "tiny-lstm", "prompt": "a", "n": 8,
                "max_tokens": 100_000, "logit_bias": {"2": -100},
            }
        ).encode(),
    ),
    "classify": request_bytes("/classify", json.dumps(MANY_LABELS).encode()),
    "tag": request_bytes("/tag", json.dumps(MANY_TAGS).encode()),
    "classify, streamed": request_bytes(
        "/classify?model=tiny-forward", (b"a bed in a cab " * 400 + b"\n") * 300, "text/plain"
    ),
    "score, streamed": request_bytes(
        "/score?model=tiny-lstm", b"a cat in a hat\n" * 8000, "text/plain"
    ),
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_a_client_that_goes_frees_its_rows(roomy: Server, call: str) -> None:
    host, port = roomy.url.removeprefix("http://").split(":")
    with counting(roomy, "cancelled", "client-gone"):
        for _ in range(3):
            with closing(socket.create_connection((host, int(port)), timeout=20)) as connection:
                connection.sendall(CALLS[call])
                eventually(lambda: rows_in_use(roomy) > 0)
            eventually(lambda: rows_in_use(roomy) == 0)
    goes_on(roomy)


def test_a_client_that_goes_while_it_waits_is_never_scheduled(small: Server) -> None:
    host, port = small.url.removeprefix("http://").split(":")
    name = 'unroll_queue_seconds_count{model="tiny-lstm"}'
    first = socket.create_connection((host, int(port)), timeout=20)
    try:
        before = small.samples()
        first.sendall(CALLS["generate"])
        eventually(lambda: rows_in_use(small) == 8)
        for _ in range(10):
            with closing(socket.create_connection((host, int(port)), timeout=20)) as waiting:
                waiting.sendall(CALLS["generate"])
                eventually(lambda: rows_in_use(small) == 16)
            eventually(lambda: rows_in_use(small) == 8)
        assert moved(before, small.samples(), name) == 1
    finally:
        first.close()
    eventually(lambda: rows_in_use(small) == 0)
    goes_on(small)


def test_a_reader_that_stops_is_given_up_and_others_are_not_held_up(tiny_models: Path) -> None:
    with serve(tiny_models, **(SETTINGS | {"request_timeout_s": 3})) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with closing(socket.socket()) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect((host, int(port)))
            resident = server.resident_bytes()
            with counting(server, "cancelled", "client-gone"):
                # Twenty megabytes: more than the kernel takes for a client that reads nothing.
                asked = WORK | {"max_tokens": 2400, "n": 8, "logprobs": 20, "stream": True}
                connection.sendall(request_bytes("/generate", json.dumps(asked).encode()))
                with server.client() as client:
                    alone = client.post("/generate", json=WORK | {"max_tokens": 50}).json()
                    again = client.post("/generate", json=WORK | {"max_tokens": 50}).json()
                assert alone["results"] == again["results"]
                eventually(lambda: rows_in_use(server) == 0)
            assert server.resident_bytes() - resident < 64 * 2**20
        goes_on(server)


def test_random_clients_leave_every_row_free(small: Server) -> None:
    draw = random.Random(11)
    with small.client() as client:
        bodies = [WORK | {"seed": i, "max_tokens": 20 + 30 * i} for i in range(8)]
        expected = [client.post("/generate", json=body).json()["results"] for body in bodies]

    async def one(http: httpx.AsyncClient) -> int:
        number = draw.randrange(8)
        await asyncio.sleep(draw.random())
        headers = {"X-Request-Timeout": draw.choice(["0.01", "0.1", "20", "20"])}
        ask = http.post("/generate", json=bodies[number], headers=headers)
        try:
            answer = await asyncio.wait_for(ask, draw.choice([0.005, 0.05, 20, 20, 20]))
        except TimeoutError:
            return 0
        if answer.status_code == 200:
            assert answer.json()["results"] == expected[number]
        return answer.status_code

    async def main() -> Counter[int]:
        async with httpx.AsyncClient(
            base_url=small.url, timeout=60, verify=NO_CERTIFICATES
        ) as http:
            return Counter(await asyncio.gather(*(one(http) for _ in range(150))))

    statuses = asyncio.run(main())
    assert statuses[200] > 20
    assert set(statuses) <= {0, 200, 429, 504}
    eventually(lambda: rows_in_use(small) == 0)
    goes_on(small)


def test_metrics_answer_under_load_and_hold_no_made_up_names(small: Server) -> None:
    async def main() -> list[str]:
        async with aiohttp.ClientSession(small.url) as http:

            async def one(number: int) -> str:
                if number % 50 == 0:
                    async with http.get("/metrics") as answer:
                        return await answer.text()
                body = {"model": f"made-up-{number}", "text": "a"}
                async with http.post("/score", json=body) as answer:
                    assert answer.status == 404
                async with http.get(f"/made-up-{number}") as answer:
                    assert answer.status == 404
                return ""

            return await asyncio.gather(*(one(i) for i in range(500)))

    texts = asyncio.run(main())
    assert "made-up" not in "".join(texts)
    assert len(small.samples()) < 1000
