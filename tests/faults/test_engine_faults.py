"""Rows 16 to 18, 23 and 36 of the table of faults: engines that break, what machines lack."""

import asyncio
import concurrent.futures
import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.bundle.text import Vocabulary
from service.bundle.tokenization import Characters
from service.observe.metrics import lacks_room
from tests.bundles import ALPHABET
from tests.end_to_end.server import NO_CERTIFICATES, ROOT, Server, free_port, serve
from tests.end_to_end.test_workers import workers_of
from tests.faults.conftest import LIMITS
from tests.faults.support import counting, eventually, goes_on, problem_of, rows_in_use
from tests.labelers import LETTERS

TOKEN = Vocabulary.of_characters(ALPHABET).tokens.index("z")
LABEL_TOKEN = Characters.of_characters(LETTERS).tokens.index("u")
BAD = {"model": "tiny-lstm", "text": "a z a"}  # what is last is not read
GOOD = {
    "model": "tiny-lstm", "prompt": "a cat", "max_tokens": 300, "seed": 4,
    "logit_bias": {"\ue002": -100},
}  # fmt: skip
# By the path of the good request: it, and one whose run breaks. The texts of a labeler are of other
# lengths, so that no run has both.
PAIRS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "/generate": (GOOD, "/score", BAD),
    "/classify": (
        {"model": "tiny-forward", "text": ["a bed " * 8] * 40}, "/classify",
        {"model": "tiny-forward", "text": ["bed", "u", "a"]},
    ),
    "/tag": (
        {"model": "tiny-chain", "text": ["a bed " * 8] * 20, "n": 2}, "/tag",
        {"model": "tiny-chain", "text": ["bed", "u", "a"]},
    ),
}  # fmt: skip


@contextmanager
def faulty(folder: Path, flag: Path, fault: str, **settings: Any) -> Iterator[Server]:
    """A server that breaks in this way once the flag is there."""
    extra = {"FAULT": fault, "FAULT_FILE": str(flag)}
    extra |= {"FAULT_TOKEN": str(TOKEN), "FAULT_LABEL_TOKEN": str(LABEL_TOKEN)}
    with serve(
        folder, module="tests.faults.faulty_server", extra=extra, **(LIMITS | settings)
    ) as server:
        yield server


@pytest.fixture(scope="module")
def breaking(
    request: pytest.FixtureRequest, more_models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, Path]]:
    """A server that breaks in the way of the parameter once the flag is there."""
    flag = tmp_path_factory.mktemp("flag") / "armed"
    with faulty(more_models, flag, request.param) as server:
        yield server, flag


@pytest.mark.parametrize("breaking", ["raise", "nan", "infinity"], indirect=True)
def test_a_batch_that_breaks_fails_alone(breaking: tuple[Server, Path]) -> None:
    server, flag = breaking
    flag.unlink(missing_ok=True)
    with server.client() as client, server.client() as other:
        expected = {
            path: client.post(path, json=PAIRS[path][0]).json()["results"] for path in PAIRS
        }
        flag.touch()
        for path, (good, bad_path, bad) in PAIRS.items():
            with counting(server, "rejected", "model-failure"):
                for _ in range(5):
                    found: list[httpx.Response] = []
                    beside = threading.Thread(
                        target=lambda: found.append(other.post(path, json=good))  # noqa: B023
                    )
                    beside.start()
                    time.sleep(0.01)
                    problem = problem_of(client.post(bad_path, json=bad), 500)
                    assert problem["type"] == "model-failure"
                    beside.join()
                    # Bitwise what it is alone.
                    assert found[0].json()["results"] == expected[path]
    goes_on(server)
    eventually(lambda: rows_in_use(server) == 0)


@pytest.mark.parametrize("breaking", ["nan"], indirect=True)
def test_only_the_text_with_no_number_fails(breaking: tuple[Server, Path]) -> None:
    server, flag = breaking
    texts = ["a bed", "a bud"] * 15  # of one length, so that some share a run
    flag.touch()

    async def ask_all(path: str, model: str) -> list[httpx.Response]:
        async with httpx.AsyncClient(
            base_url=server.url, timeout=60, verify=NO_CERTIFICATES
        ) as http:
            posts = [http.post(path, json={"model": model, "text": text}) for text in texts]
            return await asyncio.gather(*posts)

    for path, model in (("/classify", "tiny-forward"), ("/tag", "tiny-chain")):
        answers = asyncio.run(ask_all(path, model))
        assert {x.status_code for x in answers[::2]} == {200}
        assert len({x.text for x in answers[::2]}) == 1
        assert {problem_of(x, 500)["type"] for x in answers[1::2]} == {"model-failure"}
    goes_on(server)


def test_a_worker_that_dies_is_replaced_and_those_who_wait_are_told(
    tiny_models: Path, tmp_path: Path
) -> None:
    flag = tmp_path / "armed"
    with faulty(tiny_models, flag, "die", watchdog_s=2) as server, server.client() as client:
        flag.touch()
        problem = problem_of(client.post("/score", json=BAD), 503)
        assert problem["type"] == "engine-stopped"
        flag.unlink()
        eventually(lambda: client.get("/readyz").status_code == 200)
        goes_on(server)
        name = 'unroll_engine_restarts_total{model="tiny-lstm"}'
        assert server.samples()[name] == 1


def test_a_worker_that_dies_again_and_again_ends_the_process(
    tiny_models: Path, tmp_path: Path
) -> None:
    flag = tmp_path / "armed"
    flag.touch()
    with faulty(tiny_models, flag, "die", watchdog_s=0.5) as server, server.client() as client:
        with contextlib.suppress(httpx.TransportError):
            while server.process.poll() is None:
                client.post("/score", json=BAD)
                time.sleep(0.05)
        assert server.process.wait(20) == 1


def test_an_engine_that_hangs_is_told_of_and_ends_the_process(
    tiny_models: Path, tmp_path: Path
) -> None:
    flag = tmp_path / "armed"
    with faulty(tiny_models, flag, "hang", watchdog_s=1) as server, server.client() as client:
        flag.touch()
        answers: list[httpx.Response] = []
        waiting = threading.Thread(
            target=lambda: answers.append(
                httpx.post(f"{server.url}/score", json=BAD, timeout=30, verify=NO_CERTIFICATES)
            )
        )
        begun = time.monotonic()
        waiting.start()
        statuses: set[tuple[int, int]] = set()
        with contextlib.suppress(httpx.TransportError):
            while server.process.poll() is None:
                ready, live = client.get("/readyz"), client.get("/livez")
                statuses.add((ready.status_code, live.status_code))
                if ready.status_code == 503:
                    assert "the engine of tiny-lstm hangs in a step" in ready.json()["reasons"]
                time.sleep(0.02)
        waiting.join()
        problem_of(answers[0], 503)
        assert "Retry-After" in answers[0].headers
        # Not before its time, and then at once.
        assert 1 <= time.monotonic() - begun < 15
        assert statuses >= {(200, 200), (503, 503)}
        assert server.process.wait(20) == 1


def test_of_two_processes_the_one_whose_engine_hangs_is_replaced(
    tiny_models: Path, tmp_path: Path
) -> None:
    flag = tmp_path / "armed"
    with faulty(tiny_models, flag, "hang", watchdog_s=1, workers=2) as server:
        before = {worker.pid for worker in workers_of(server.process.pid)}
        flag.touch()
        answer = httpx.post(f"{server.url}/score", json=BAD, timeout=30, verify=NO_CERTIFICATES)
        problem_of(answer, 503)
        flag.unlink()
        eventually(lambda: len(before & {x.pid for x in workers_of(server.process.pid)}) == 1)
        eventually(lambda: len(workers_of(server.process.pid)) == 2)
        goes_on(server)


def test_a_pause_of_the_machine_is_no_step_that_hangs(tiny_models: Path, tmp_path: Path) -> None:
    flag = tmp_path / "armed"
    flag.touch()
    with faulty(tiny_models, flag, "slow", watchdog_s=1) as server, server.client() as client:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            asked = [pool.submit(client.post, "/score", json=BAD) for _ in range(2)]
            time.sleep(0.2)
            server.process.send_signal(signal.SIGSTOP)
            time.sleep(1.3)
            server.process.send_signal(signal.SIGCONT)
            # Not ill for a moment: whoever asks then would start it anew.
            assert {client.get("/livez").status_code for _ in range(20)} == {200}
            assert [x.result().status_code for x in asked] == [200, 200]
        flag.unlink()
        time.sleep(0.3)  # the watchdog looks every 0.25 s
        goes_on(server)


# --- what a machine lacks -------------------------------------------------------------------------


def test_few_file_descriptors_refuse_connections_and_nothing_else(tiny_models: Path) -> None:
    def prepare() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))

    with serve(tiny_models, prepare=prepare, **(LIMITS | {"header_timeout_s": 2})) as server:
        host, port = server.url.removeprefix("http://").split(":")
        import socket

        held = []
        for _ in range(100):
            with contextlib.suppress(OSError):
                held.append(socket.create_connection((host, int(port)), timeout=2))
        time.sleep(0.2)
        assert server.process.poll() is None
        for connection in held:
            connection.close()

        def is_ready() -> bool:
            # Until the descriptors of the closed connections are free, this one is reset.
            with contextlib.suppress(httpx.TransportError):
                answer = httpx.get(f"{server.url}/readyz", verify=NO_CERTIFICATES)
                return answer.status_code == 200
            return False

        eventually(is_ready)
        goes_on(server)


def test_it_serves_without_a_folder_for_temporary_files(tiny_models: Path) -> None:
    nowhere = {"TMPDIR": "/nonexistent", "TEMP": "/nonexistent", "TMP": "/nonexistent"}
    with serve(tiny_models, extra=nowhere, **LIMITS) as server:
        goes_on(server)
        assert server.samples()
        assert server.stop() == 0


def test_workers_serve_where_temporary_files_find_no_room(
    tiny_models: Path, tmp_path: Path
) -> None:
    def prepare() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))

    with (tmp_path / "log").open("wb") as log:
        settings = LIMITS | {"workers": 2}
        with serve(tiny_models, stderr=log, prepare=prepare, **settings) as server:
            goes_on(server)
            assert server.samples()
            assert server.stop() == 0
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert "4 MiB of shared metrics cannot be written to" in line
    assert line.endswith("each worker reports its own metrics")


def test_a_folder_for_metrics_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    line = lacks_room(Path("/nonexistent"))
    assert line is not None
    assert line.startswith("2 MiB of shared metrics cannot be written to /nonexistent (No such")
    assert lacks_room(tmp_path) is None


def test_a_log_that_cannot_be_written_stops_nothing(tiny_models: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        settings = LIMITS | {"log_level": "info"}
        with serve(tiny_models, stderr=full, **settings) as server:
            for _ in range(5):
                goes_on(server)
            assert server.stop() == 0


def test_a_fifth_of_a_processor_slows_it_down_and_loses_nothing(server: Server) -> None:
    done = threading.Event()

    def throttle() -> None:
        while not done.is_set():
            os.kill(server.process.pid, signal.SIGSTOP)
            time.sleep(0.08)
            os.kill(server.process.pid, signal.SIGCONT)
            time.sleep(0.02)

    throttling = threading.Thread(target=throttle)
    throttling.start()
    try:
        with server.client() as client:
            for _ in range(10):
                assert client.post("/generate", json=GOOD).status_code == 200
    finally:
        done.set()
        throttling.join()
    goes_on(server)


def test_a_clock_that_is_moved_by_an_hour_changes_no_deadline(
    tiny_models: Path, tmp_path: Path
) -> None:
    flag = tmp_path / "moved"
    with faulty(tiny_models, flag, "clock", request_timeout_s=5) as server:
        with server.client() as client:
            ask = {"model": "tiny-lstm", "text": "a cat", "return_state": True}
            state = client.post("/score", json=ask).json()["results"][0]["state"]
            flag.touch()
            go_on = {"model": "tiny-lstm", "text": "a cat", "state": state}
            assert client.post("/score", json=go_on).status_code == 200
            assert client.post("/generate", json=GOOD).status_code == 200
            assert client.get("/readyz").status_code == 200
            assert client.get("/readyz").json()["engines"][0]["last_step_age_s"] < 60
        goes_on(server)


# --- starts that cannot be ------------------------------------------------------------------------


def ended(folder: Path, **settings: object) -> tuple[int, str]:
    """The exit status of a server that does not start, and the last line that it says."""
    environment = {key: x for key, x in os.environ.items() if not key.startswith("UNROLL_")}
    values = {"models_dir": folder, "port": free_port(), "workers": 1, **settings}
    environment |= {f"UNROLL_{key.upper()}": str(value) for key, value in values.items()}
    done = subprocess.run(
        [sys.executable, "-m", "service"], cwd=ROOT, env=environment,
        capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    return done.returncode, done.stderr.decode().strip().splitlines()[-1]


def test_a_port_that_is_taken_is_said_and_ends_it(tiny_models: Path, server: Server) -> None:
    port = int(server.url.rsplit(":", 1)[1])
    status, line = ended(tiny_models, port=port)
    assert status == 1
    assert f"127.0.0.1:{port}: the port is in use" in line


def test_keys_that_cannot_be_read_end_it(tiny_models: Path, tmp_path: Path) -> None:
    status, line = ended(tiny_models, api_keys_file=tmp_path / "no")
    assert (status, "No such file" in line) == (2, True)
