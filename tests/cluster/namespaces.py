"""Nodes for tests: network namespaces of this machine, joined by a bridge. Needs root and `ip`.

    with nodes(2) as (head, worker):
        server = head.start([sys.executable, "-m", "service", "--host", head.address])
        worker.run(["curl", f"http://{head.address}:8000/livez"], timeout_s=5)
        head.kill()  # as if it lost its power

Everything is inside the namespaces, the bridge too: nothing of the machine's own network changes,
and the nodes reach each other and nothing else. The test itself is on no node, so what talks to a
node has to run on one. Nodes share the machine's files, host name and processors; a program that
looks for its address by host name needs it said (`--node-ip-address`, `GLOO_SOCKET_IFNAME=eth0`).
"""

import functools
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

_PREFIX = "unroll-"  # and the id of the process that made it
_FOLDER = Path("/run/netns")
_KILLED_WITHIN_S = 60.0
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Node:
    """A namespace with the loopback interface and `eth0`, which has its address."""

    name: str
    address: str
    switch: str  # the namespace with the bridge
    port: str  # the bridge's end of this node's cable
    started: list[subprocess.Popen[str]] = field(default_factory=list, repr=False)

    def start(
        self,
        command: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        output: IO[str] | IO[bytes] | int | None = None,
        input: int | None = None,  # noqa: A002 (as subprocess.run calls it)
    ) -> subprocess.Popen[str]:
        """Start a command on the node, with `env` added to the environment.

        Standard output and errors go to `output`. The process has the id of the command and a
        session of its own, so that Ctrl-C does not reach it.
        """
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.name, *command],
            env={**os.environ, **(env or {})},
            stdin=input,
            stdout=output,
            stderr=subprocess.STDOUT if output is not None else None,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def run(
        self,
        command: Sequence[str | Path],
        *,
        timeout_s: float,
        env: Mapping[str, str] | None = None,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the node and return its output and errors, both in `stdout`.

        Raises CalledProcessError (unless `check` is false), TimeoutExpired.
        """
        return subprocess.run(
            ["ip", "netns", "exec", self.name, *command],
            env={**os.environ, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=check,
        )

    def pids(self) -> list[int]:
        """The ids of all processes on the node, whoever started them."""
        return _pids(self.name)

    def kill(self) -> None:
        """End the node like a loss of power: nothing is sent any more, no process lives on."""
        self.cut()
        _kill(self.name)
        self._reap()

    def remove(self) -> None:
        """End its processes, and the node itself."""
        _remove(self.name)
        self._reap()

    def cut(self) -> None:
        """Pull the network cable: packets are lost, connections are not closed."""
        _ip("-n", self.switch, "link", "set", self.port, "down")

    def mend(self) -> None:
        """Put the network cable back."""
        _ip("-n", self.switch, "link", "set", self.port, "up")

    def _reap(self) -> None:
        for process in self.started:
            process.wait(_KILLED_WITHIN_S)


@contextmanager
def nodes(count: int) -> Iterator[tuple[Node, ...]]:
    """That many nodes, at 10.77.0.1, 10.77.0.2 …; at the end, their processes are killed."""
    remove_leftovers()
    stem = f"{_PREFIX}{os.getpid()}-{next(_numbers)}"
    switch = f"{stem}-switch"
    made = tuple(
        Node(f"{stem}-{i + 1}", f"10.77.0.{i + 1}", switch, f"port{i + 1}") for i in range(count)
    )
    try:
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for node in made:
            _plug_in(node)
        yield made
    finally:
        for node in made:
            node.remove()
        _remove(switch)


@functools.cache
def skip_reason() -> str | None:
    """Why there can be no nodes here, for `pytest.mark.skipif`; None if there can be."""
    if not sys.platform.startswith("linux"):
        return "network namespaces need Linux"
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need `ip` (Debian: iproute2)"
    try:
        with nodes(1):
            return None
    except subprocess.CalledProcessError as error:
        return f"network namespaces are not allowed here: {error.stderr.strip()}"


def remove_leftovers() -> None:
    """Remove the nodes of test runs that were killed, with the processes on them."""
    for path in _FOLDER.glob(f"{_PREFIX}*") if _FOLDER.is_dir() else ():
        owner = path.name.removeprefix(_PREFIX).partition("-")[0]
        if owner.isdecimal() and not Path("/proc", owner).exists():
            _remove(path.name)


def _plug_in(node: Node) -> None:
    _ip("netns", "add", node.name)
    cable = ("type", "veth", "peer", "name", node.port, "netns", node.switch)
    _ip("-n", node.name, "link", "add", "eth0", *cable)
    _ip("-n", node.switch, "link", "set", node.port, "master", "bridge", "up")
    _ip("-n", node.name, "address", "add", f"{node.address}/24", "dev", "eth0")
    _ip("-n", node.name, "link", "set", "lo", "up")
    _ip("-n", node.name, "link", "set", "eth0", "up")


def _remove(name: str) -> None:
    if (_FOLDER / name).exists():
        _kill(name)
        _ip("netns", "delete", name)


def _kill(name: str) -> None:
    """Kill until none is left: a process may start another while the list is read."""
    give_up = time.monotonic() + _KILLED_WITHIN_S
    while found := _pids(name):
        if time.monotonic() > give_up:
            raise TimeoutError(f"processes {found} of {name} do not end")
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # has ended by itself
        time.sleep(0.02)


def _pids(name: str) -> list[int]:
    """The ids of the processes in a namespace, without those that have ended but are not reaped."""
    namespace = (_FOLDER / name).stat().st_ino
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "ns/net").stat().st_ino == namespace:
                found.append(int(process.name))
        except OSError:
            continue  # has ended, or belongs to somebody else
    return found


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
