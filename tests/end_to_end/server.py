"""A real server process on a free port of 127.0.0.1, waited for by polling, always ended."""

import contextlib
import itertools
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
# No address here begins with https, and to read certificates takes 50 ms a client.
NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
_FIRST_PORT, _PORT_COUNT = 10_000, 22_000
_PORTS = itertools.count(os.getpid() * 997)
_HEAP_BYTES = 64 * 2**20  # HEAP_MAX_SIZE of glibc's malloc/arena.c where addresses have 64 bits


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    process: subprocess.Popen[bytes]

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=120.0, verify=NO_CERTIFICATES)

    def resident_bytes(self) -> int:
        """Resident memory of the process."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def samples(self) -> dict[str, float]:
        """What /metrics says, by series."""
        with self.client() as client:
            lines = client.get("/metrics").text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def stop(self) -> int:
        """End it with SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_TIMEOUT_S)


def arenas_in(maps: str) -> int:
    """How many malloc arenas a `/proc/…/maps` shows, each of less than 64 MiB.

    All but the first have a stretch of 64 MiB at a multiple of that, used from its beginning; what
    follows the used part is not accessible.
    """
    found = re.findall(r"^([0-9a-f]+)-([0-9a-f]+) (\S+)", maps, re.MULTILINE)
    stretches = [(int(begin, 16), int(end, 16), rights) for begin, end, rights in found]
    return 1 + sum(
        begin % _HEAP_BYTES == 0
        and (rights, after) == ("rw-p", "---p")
        and (end, last) == (middle, begin + _HEAP_BYTES)
        for (begin, end, rights), (middle, last, after) in itertools.pairwise(stretches)
    )


def free_port() -> int:
    """A port that is free, and that nobody else is likely to take before a server listens on it.

    Outgoing connections, of which other tests open a thousand, take theirs from above (Linux:
    32768 to 60999); tests in other processes count from elsewhere.
    """
    for number in _PORTS:
        port = _FIRST_PORT + number % _PORT_COUNT
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("unreachable: numbers do not end")


@contextmanager
def serve(
    models_dir: Path,
    *,
    module: str = "service",
    extra: Mapping[str, str] | None = None,
    stderr: IO[bytes] | None = None,
    prepare: Callable[[], None] | None = None,
    **settings: object,
) -> Iterator[Server]:
    """`python -m service` over a folder of bundles; settings as `UNROLL_` variables.

    One process, unless `workers` says otherwise (None: as many as it starts by itself). `module`
    is run in the place of `service`, with `extra` in its environment; `prepare` is called in the
    new process first.
    """
    port = settings.pop("port", free_port())
    environment = {k: v for k, v in os.environ.items() if not k.startswith("UNROLL_")}
    environment |= extra or {}
    # Nobody has to be told before they end.
    values = {"models_dir": models_dir, "port": port, "lame_duck_s": 0, "workers": 1, **settings}
    said = {name: value for name, value in values.items() if value is not None}
    environment |= {f"UNROLL_{name.upper()}": str(value) for name, value in said.items()}
    command = [sys.executable, "-m", module]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stderr=stderr,
        preexec_fn=prepare,  # noqa: PLW1509
    )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(url, process)
        yield Server(url, process)
    finally:
        if process.poll() is None:
            # In order first: workers are children that would outlive a parent that is killed.
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait(STOP_TIMEOUT_S)


def _wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    with httpx.Client(verify=NO_CERTIFICATES) as client:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise RuntimeError(f"the server ended with {process.returncode}")
            try:
                if client.get(f"{url}/readyz").status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
    raise TimeoutError(f"the server was not ready after {START_TIMEOUT_S} s")
