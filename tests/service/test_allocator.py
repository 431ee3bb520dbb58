"""How many malloc arenas a server has: as a process of its own, since arenas never go."""

import subprocess
import sys
from pathlib import Path

import pytest

from service.allocator import MAX_ARENAS
from tests.end_to_end.server import ROOT, arenas_in

# Threads that have memory all at once: each asks for an arena of its own.
_SCRIPT = """
import os, threading
from service.allocator import bound_arenas
print(bound_arenas(os.environ))
together = threading.Barrier(9)
def work():
    kept = [bytes(2000) for _ in range(100)]
    together.wait(20)
    together.wait(20)
for _ in range(8):
    threading.Thread(target=work).start()
together.wait(20)
print(open("/proc/self/maps").read())
together.wait(20)
"""

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/maps").exists(), reason="/proc shows what is mapped"
)


@pytest.mark.parametrize(
    ("environment", "bounded"),
    [
        ({}, True),
        ({"MALLOC_ARENA_MAX": "6"}, False),
        ({"GLIBC_TUNABLES": "glibc.malloc.arena_max=6"}, False),
        ({"GLIBC_TUNABLES": "glibc.malloc.check=0"}, True),
    ],
)
def test_two_arenas_are_enough_unless_the_environment_says_how_many(
    environment: dict[str, str], bounded: bool
) -> None:
    told = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", **environment},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    is_bounded, _, maps = told.partition("\n")
    assert is_bounded == str(bounded)
    assert arenas_in(maps) == (MAX_ARENAS if bounded else 6)
