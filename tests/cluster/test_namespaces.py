import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster import namespaces
from tests.cluster.namespaces import nodes

pytestmark = pytest.mark.skipif(
    namespaces.skip_reason() is not None, reason=str(namespaces.skip_reason())
)

_ECHO = """
import socket, sys
server = socket.create_server((sys.argv[1], 7000))
while True:
    connection, _ = server.accept()
    connection.sendall(b"hello")
    connection.close()
"""
_ASK = """
import socket, sys
with socket.create_connection((sys.argv[1], 7000), timeout=2) as connection:
    print(connection.recv(5).decode())
"""
_MANY = "import os, time; [os.fork() or os.setsid() for _ in range(3)]; time.sleep(60)"


def test_nodes_reach_each_other_and_the_test_reaches_neither() -> None:
    with nodes(2) as (first, second):
        first.start([sys.executable, "-c", _ECHO, first.address])
        assert _ask_until_answered(second, first.address) == "hello\n"
        here = [sys.executable, "-c", _ASK, first.address]
        assert subprocess.run(here, check=False, capture_output=True).returncode != 0


def test_a_cut_node_is_reached_again_once_mended() -> None:
    with nodes(2) as (first, second):
        first.start([sys.executable, "-c", _ECHO, first.address])
        _ask_until_answered(second, first.address)
        first.cut()
        with pytest.raises(subprocess.CalledProcessError):
            second.run([sys.executable, "-c", _ASK, first.address], timeout_s=10)
        first.mend()
        assert _ask_until_answered(second, first.address) == "hello\n"


def test_a_killed_node_has_no_process_left_and_the_other_keeps_its_own() -> None:
    with nodes(2) as (first, second):
        for node in (first, second):
            node.start([sys.executable, "-c", _MANY])
        _wait_for(lambda: len(first.pids()) == len(second.pids()) == 8)
        first.kill()
        assert first.pids() == []
        assert len(second.pids()) == 8


def test_nodes_of_a_test_run_that_was_killed_are_removed_by_the_next() -> None:
    program = "import os; from tests.cluster.namespaces import nodes\nwith nodes(1): os._exit(0)"
    subprocess.run([sys.executable, "-c", program], check=True)
    with nodes(1):
        owners = [x.name.split("-")[1] for x in Path("/run/netns").glob("unroll-*")]
        assert str(os.getpid()) in owners
        assert all(Path("/proc", owner).exists() for owner in owners)


def _ask_until_answered(node: namespaces.Node, address: str) -> str:
    answers: list[str] = []

    def ask() -> bool:
        done = node.run([sys.executable, "-c", _ASK, address], timeout_s=10, check=False)
        answers.append(done.stdout)
        return done.returncode == 0

    _wait_for(ask)
    return answers[-1]


def _wait_for(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    give_up = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up, "it did not come true in time"
        time.sleep(0.05)
