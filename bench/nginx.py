"""nginx with the configuration in `docker/nginx`, in front of servers of this machine."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.server import ROOT, free_port

CONFIGURATION = ROOT / "docker/nginx"
# Where `make nginx` unpacks it.
_UNPACKED = ROOT / ".venv/nginx/usr/sbin"
_START_TIMEOUT_S = 20.0
_STOP_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Front:
    """A running nginx."""

    url: str
    process: subprocess.Popen[bytes]


def found_nginx() -> str | None:
    """The program, or None."""
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:{_UNPACKED}")


@contextmanager
def nginx(replicas: Sequence[str], folder: Path, *, spread: str = "even") -> Iterator[Front]:
    """Run it in front of replicas, given as `host:port`; its files go to `folder`.

    Only what differs from Docker is changed: the addresses, the port, the number of processes.
    Raises FileNotFoundError without nginx.
    """
    program = found_nginx()
    if program is None:
        raise FileNotFoundError("nginx is not here; run: make nginx")
    port = free_port()
    write_configuration(replicas, folder, port, spread)
    command = [program, "-p", str(folder), "-e", str(folder / "error.log"), "-c"]
    process = subprocess.Popen([*command, str(folder / "nginx.conf")])
    try:
        _wait_for(folder / "nginx.pid", process, folder / "error.log")
        yield Front(f"http://127.0.0.1:{port}", process)
    finally:
        process.terminate()
        process.wait(_STOP_TIMEOUT_S)


def write_configuration(replicas: Sequence[str], folder: Path, port: int, spread: str) -> None:
    """The configuration for replicas at fixed addresses."""
    main = (CONFIGURATION / "nginx.conf").read_text()
    changes = {
        "worker_processes auto;": "worker_processes 1;",
        "listen 8080;": f"listen 127.0.0.1:{port};",
    }
    if os.geteuid() == 0:
        # As root it would change to a user that may not exist.
        changes["daemon off;"] = "daemon off;\nuser root;"
    for before, after in changes.items():
        if main.count(before) != 1:
            raise ValueError(f"nginx.conf has no {before!r}")
        main = main.replace(before, after)
    # The line of `service`, with an address in the place of a name to be resolved.
    lines = (CONFIGURATION / "replicas.conf").read_text().splitlines()
    template = next(x for x in lines if x.startswith("server "))
    servers = [template.replace("service:8000 resolve", each) for each in replicas]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "nginx.conf").write_text(main)
    (folder / "replicas.conf").write_text("\n".join(servers) + "\n")
    shutil.copy(CONFIGURATION / "spread" / f"{spread}.conf", folder / "spread.conf")


def _wait_for(pid_file: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    # Written once it listens.
    while not pid_file.exists():
        if process.poll() is not None:
            raise RuntimeError(f"nginx ended with {process.returncode}: {log.read_text()}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"nginx was not ready after {_START_TIMEOUT_S:g} s")
        time.sleep(0.01)
