"""Several server processes on one port, and how they end."""

import concurrent.futures
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest

from service.runtime.allocator import MAX_ARENAS
from tests.end_to_end.server import NO_CERTIFICATES, ROOT, arenas_in, serve
from tests.faults.support import eventually as within

BODY = {"model": "alice-gru", "prompt": "Alice ", "max_tokens": 60, "seed": 3, "n": 2}


eventually = partial(within, timeout_s=60)  # starts of processes, one after another


def ask(url: str, seed: int) -> str:
    """The answer's results, over a connection of its own."""
    answer = httpx.post(
        f"{url}/generate", json=BODY | {"seed": seed}, timeout=60.0, verify=NO_CERTIFICATES
    )
    return answer.raise_for_status().json()["results"][0]["choices"][0]["text"]  # type: ignore[no-any-return]


def workers_of(pid: int) -> list[psutil.Process]:
    """The processes that answer: multiprocessing's helpers are none of them."""
    children = psutil.Process(pid).children(recursive=True)
    living = [x for x in children if x.status() != psutil.STATUS_ZOMBIE]
    return [x for x in living if "spawn_main" in " ".join(x.cmdline())]


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model, since every process opens all that there are."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(ROOT / "models/alice-gru", folder / "alice-gru")
    return folder


def test_workers_share_the_port_answer_alike_and_end_together(models_dir: Path) -> None:
    with serve(models_dir, workers=2, engine_threads=1) as server:
        workers = workers_of(server.process.pid)
        assert len(workers) == 2
        before = [sum(x.cpu_times()[:2]) for x in workers]
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            texts = list(pool.map(lambda seed: ask(server.url, seed % 4), range(64)))
        assert all(texts[i] == texts[i % 4] for i in range(64))
        assert len(set(texts)) == 4
        for worker in workers:
            assert arenas_in(Path(f"/proc/{worker.pid}/maps").read_text()) <= MAX_ARENAS
        # Both of them worked.
        after = [sum(x.cpu_times()[:2]) for x in workers]
        assert all(new > old for new, old in zip(after, before, strict=True))
        assert server.stop() == 0
        gone, alive = psutil.wait_procs(workers, timeout=10)
        assert not alive
        assert len(gone) == 2


def test_workers_give_what_one_process_gives(models_dir: Path) -> None:
    with serve(models_dir, workers=2) as several, serve(models_dir) as one:
        assert [ask(several.url, seed) for seed in range(3)] == [
            ask(one.url, seed) for seed in range(3)
        ]


def test_a_worker_that_dies_is_replaced_as_soon_as_one_can_start(
    models_dir: Path, tmp_path: Path
) -> None:
    shared, log = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}, tmp_path / "log"
    folder = shutil.copytree(models_dir, tmp_path / "models")
    with log.open("wb") as out, serve(folder, workers=2, extra=shared, stderr=out) as server:
        eventually(lambda: log.read_text().count("Application startup complete") == 2)
        first, second = workers_of(server.process.pid)
        # Beside a folder that is broken by now the other one goes on, and the cause is said.
        (folder / "broken").mkdir()
        first.kill()
        eventually(lambda: "this worker cannot start: broken: manifest.json" in log.read_text())
        assert "(SIGKILL); a new one starts now" in log.read_text()
        eventually(lambda: "(status 3); a new one starts in 1 s" in log.read_text())
        assert {ask(server.url, 1) for _ in range(4)} == {ask(server.url, 1)}
        assert workers_of(server.process.pid)[0] == second
        (folder / "broken").rmdir()
        eventually(lambda: log.read_text().count("Application startup complete") == 3)
        assert len(workers_of(server.process.pid)) == 2
        # What the first one showed of its last moment is shown no longer.
        eventually(lambda: server.samples()["unroll_ready"] == 1)
        assert not list(tmp_path.glob(f"gauge_live*_{first.pid}.db"))
        assert list(tmp_path.glob("gauge_live*.db"))
        # Where no worker is left, and none can start, the service ends, and not well.
        (folder / "broken").mkdir()
        for worker in workers_of(server.process.pid):
            worker.kill()
        assert server.process.wait(60) == 1
        assert "no worker could start; shutting down" in log.read_text()


def test_workers_do_not_outlive_the_process_that_started_them(models_dir: Path) -> None:
    with serve(models_dir, workers=2) as server:
        workers = workers_of(server.process.pid)
        server.process.kill()
        _, alive = psutil.wait_procs(workers, timeout=15)
        for worker in alive:
            worker.kill()
        assert not alive


def test_workers_do_not_start_on_a_bundle_that_cannot_be_served(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    command = [
        sys.executable,
        "-m",
        "service",
        "--models-dir",
        str(tmp_path),
        "--workers",
        "2",
        "--port",
        "0",
    ]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, timeout=60)
    assert done.returncode == 1
    last = done.stderr.decode().splitlines()[-1]
    assert last == (
        "error: broken: manifest.json: No such file or directory; "
        "UNROLL_ON_BAD_BUNDLE=skip serves the others"
    )
