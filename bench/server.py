"""Start server processes on free loopback ports, wait until they are ready, and always end them."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True)
class Server:
    """A running server."""

    url: str
    pid: int


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def unroll(
    models_dir: Path, log: Path, checkout: Path = ROOT, /, **settings: object
) -> Iterator[Server]:
    """Run `python -m service` on a folder of bundles; settings become `UNROLL_` variables.

    The code is that of `checkout`, the packages are those of this interpreter.
    """
    environment = {f"UNROLL_{name.upper()}": str(value) for name, value in settings.items()}
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "service",
        "--models-dir",
        str(models_dir.resolve()),
        "--port",
        str(port),
    ]
    with running(command, port, "/readyz", log, environment, folder=checkout) as server:
        yield server


@contextmanager
def running(
    command: Sequence[str],
    port: int,
    ready_path: str,
    log: Path,
    environment: Mapping[str, str] | None = None,
    *,
    folder: Path = ROOT,
) -> Iterator[Server]:
    """Run any server in a folder; it is ready when `ready_path` answers 200."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("UNROLL_")}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=kept | dict(environment or {}),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait_until_ready(f"http://127.0.0.1:{port}{ready_path}", process, log)
            yield Server(f"http://127.0.0.1:{port}", process.pid)
        finally:
            _end(process)


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}; see {log}")
        try:
            with urllib.request.urlopen(url, timeout=2.0) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.05)
    raise TimeoutError(f"the server was not ready after {_START_TIMEOUT_S:g} s; see {log}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM to the process, then SIGKILL to whatever is left of it and its children."""
    family = [psutil.Process(process.pid)] if process.poll() is None else []
    family += [child for parent in family for child in parent.children(recursive=True)]
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    psutil.wait_procs(family, timeout=_STOP_TIMEOUT_S)
    for member in family:
        if member.is_running():
            member.kill()
    process.wait(_STOP_TIMEOUT_S)
