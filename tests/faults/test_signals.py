"""Row 19 of the table of faults: how the process ends, when it is told to and when it is not."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.end_to_end.server import ROOT, Server, free_port, serve
from tests.faults.conftest import LIMITS
from tests.faults.support import goes_on, problem_of

# A second or two of work on this model.
LONG = {
    "model": "tiny-lstm", "prompt": "a cat", "seed": 1, "logit_bias": {"\ue002": -100},
    "max_tokens": 15_000,
}  # fmt: skip
SHORT = {"model": "tiny-lstm", "text": "a"}
SETTINGS: dict[str, Any] = LIMITS | {"max_tokens": 1_000_000, "max_cost_tokens": 10_000_000}
ENDLESS = LONG | {"max_tokens": 100_000, "n": 8}


class Background:
    """A request in a thread of its own, and its answer."""

    def __init__(self, ask: Callable[[], Any]) -> None:
        self.answer: Any = None
        self._thread = threading.Thread(target=self._run, args=(ask,))
        self._thread.start()

    def _run(self, ask: Callable[[], Any]) -> None:
        try:
            self.answer = ask()
        except httpx.TransportError as error:
            self.answer = error

    def join(self) -> Any:
        self._thread.join(60)
        return self.answer


def asked(server: Server, body: dict[str, Any]) -> Background:
    """A request that is in the engine when this returns."""
    background = Background(lambda: httpx.post(f"{server.url}/generate", json=body, timeout=60))
    while not any(
        value for name, value in server.samples().items() if name.startswith("unroll_rows{")
    ):
        time.sleep(0.01)
    return background


def streamed(url: str, body: dict[str, Any]) -> str:
    # Not by httpx: in a busy process its reader falls so far behind that the server gives it up.
    at = httpx.URL(url)
    connection = http.client.HTTPConnection(at.host, at.port, timeout=60)
    with contextlib.closing(connection):
        kind = {"Content-Type": "application/json"}
        connection.request("POST", "/generate", json.dumps(body | {"stream": True}), kind)
        return connection.getresponse().read().decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("workers", [1, 2])
def test_an_idle_server_ends_at_once_and_well(
    tiny_models: Path, number: signal.Signals, workers: int
) -> None:
    with serve(tiny_models, **(SETTINGS | {"workers": workers})) as server:
        goes_on(server)
        family = psutil.Process(server.process.pid).children(recursive=True)
        server.process.send_signal(number)
        assert server.process.wait(10) == 0
        _, alive = psutil.wait_procs(family, timeout=5)
        assert not alive


def test_requests_in_flight_are_answered_and_new_connections_are_refused(tiny_models: Path) -> None:
    settings = SETTINGS | {"lame_duck_s": 1, "grace_s": 20}
    with serve(tiny_models, **settings) as server, server.client() as client:
        expected = httpx.post(f"{server.url}/generate", json=LONG, timeout=60).json()["results"]
        plain = asked(server, LONG)
        stream = Background(lambda: streamed(server.url, LONG))
        assert "Connection" not in client.get("/readyz").headers
        server.process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        told = []
        with contextlib.suppress(httpx.ConnectError), server.client() as other:
            while True:
                ready = other.get("/readyz")
                answer = other.post("/score", json=SHORT)
                told.append((time.monotonic() - begun, ready.status_code, answer.status_code))
                # A proxy has no connection left at the end of the lame-duck time.
                assert answer.headers["Connection"] == "close"
                time.sleep(0.02)
        assert server.process.poll() is None
        # Unready first, and answering all the same; then nobody else may connect.
        lame_duck = [x for x in told if 0.2 < x[0] < 0.9]
        assert lame_duck
        assert {x[1:] for x in lame_duck} == {(503, 200)}
        # Whoever kept a connection idle all that time is sent away.
        refused = client.post("/score", json=SHORT)
        assert problem_of(refused, 503)["type"] == "draining"
        assert refused.headers["Retry-After"]
        answer = plain.join()
        assert answer.status_code == 200
        text = answer.json()["results"][0]["choices"][0]["text"]
        assert text.startswith(expected[0]["choices"][0]["text"])
        assert "event: done" in stream.join()
        assert server.process.wait(20) == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_connection_that_was_accepted_is_answered(tiny_models: Path, workers: int) -> None:
    """So a proxy that is refused knows that nothing has begun, and may ask elsewhere."""
    statuses: set[int] = set()

    def ask_until_refused(url: httpx.URL) -> None:
        while True:
            connection = http.client.HTTPConnection(url.host, url.port, timeout=60)
            with contextlib.closing(connection):
                try:
                    connection.connect()
                except ConnectionRefusedError:
                    return
                connection.request("GET", "/models/tiny-lstm")
                statuses.add(connection.getresponse().status)

    with serve(tiny_models, **(SETTINGS | {"workers": workers, "grace_s": 20})) as server:
        url = httpx.URL(server.url)
        asking = [Background(partial(ask_until_refused, url)) for _ in range(6)]
        time.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        assert [each.join() for each in asking] == [None] * 6
        assert statuses == {200}
        assert server.process.wait(20) == 0


def test_what_does_not_end_within_the_grace_is_told(tiny_models: Path) -> None:
    with serve(tiny_models, **(SETTINGS | {"grace_s": 0.5})) as server:
        plain = asked(server, ENDLESS)
        stream = Background(lambda: streamed(server.url, ENDLESS))
        # It waits for no engine: its body does not come.
        url = httpx.URL(server.url)
        slow = socket.create_connection((url.host, url.port or 0), timeout=20)
        head = b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        slow.sendall(head + b"Content-Length: 100\r\n\r\n{")
        time.sleep(0.3)
        begun = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
        assert time.monotonic() - begun < 10
        assert problem_of(plain.join(), 503)["type"] == "engine-stopped"
        assert "event: error" in stream.join()
        answer = b"".join(iter(lambda: slow.recv(65536), b""))
        slow.close()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in answer
        assert b'"type":"draining"' in answer


def test_a_second_signal_ends_it_at_once(tiny_models: Path) -> None:
    settings = SETTINGS | {"grace_s": 60, "lame_duck_s": 30}
    with serve(tiny_models, **settings) as server:
        plain = asked(server, ENDLESS)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(15) == 0
        assert problem_of(plain.join(), 503)


def test_a_signal_while_it_loads_ends_it_well() -> None:
    environment = {key: x for key, x in os.environ.items() if not key.startswith("UNROLL_")}
    environment |= {"UNROLL_MODELS_DIR": str(ROOT / "models"), "UNROLL_PORT": str(free_port())}
    for delay_s in (0.9, 1.1, 1.3):
        process = subprocess.Popen(
            [sys.executable, "-m", "service"], cwd=ROOT, env=environment, stderr=subprocess.PIPE
        )
        assert process.stderr is not None
        # Its first line comes before the first model.
        assert b"settings" in process.stderr.readline()
        time.sleep(delay_s - 0.9)
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
        assert process.wait(20) == 0
        process.stderr.close()


def test_after_a_kill_the_next_one_serves(tiny_models: Path) -> None:
    port = free_port()
    for _ in range(2):
        with serve(tiny_models, **(SETTINGS | {"port": port})) as server:
            background = asked(server, ENDLESS)
            server.process.kill()
            assert server.process.wait(10) == -signal.SIGKILL
            assert isinstance(background.join(), httpx.TransportError)
