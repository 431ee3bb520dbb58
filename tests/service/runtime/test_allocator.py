"""How much memory a process keeps for later: in one of its own, since it never goes."""

import subprocess
import sys
from pathlib import Path

import pytest

from service.runtime.allocator import MAX_ARENAS
from tests.end_to_end.server import ROOT, arenas_in

# Threads that have memory all at once: each asks for an arena of its own.
_SCRIPT = """
import os, threading
from service.runtime.allocator import bound_arenas
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

# What each of four models keeps after its largest batch, one after the other.
_MODELS = """
import gc, os, sys
import numpy as np
from pathlib import Path
from service.bundle.store import read_bundle
from service.runtime.language_model import OnnxLanguageModelSession
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
bundle = read_bundle(Path("models/alice-lstm"))
models = [OnnxLanguageModelSession(bundle, "int8") for _ in range(4)]
tokens, lengths = np.full((64, 32), 5), np.full(64, 32, np.int32)
for model in models:
    before = resident()
    model.pick(tokens, lengths, tokens, model.initial_states(64))
    gc.collect()
    print(resident() - before)
"""

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/maps").exists(), reason="/proc shows what is mapped"
)


def output_of(script: str, environment: dict[str, str]) -> str:
    """What a Python process of that script and environment prints."""
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", **environment},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout


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
    told = output_of(_SCRIPT, environment)
    is_bounded, _, maps = told.partition("\n")
    assert is_bounded == str(bounded)
    assert arenas_in(maps) == (MAX_ARENAS if bounded else 6)


def test_models_share_the_memory_that_they_work_in() -> None:
    first, *others = map(int, output_of(_MODELS, {"ORT_DISABLE_TELEMETRY": "1"}).split())
    assert first > 4 * 2**20
    assert sum(others) < first / 2
