"""Training on several processes and two machines: whatever is killed, the weights are the same."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cluster.namespaces import nodes, skip_reason
from tests.training.helpers import FABLE, tiny_document, write_toml
from training.loop import checkpoint
from training.loop.checkpoint import BEST, LAST
from training.loop.run_log import read_log

ROOT = Path(__file__).parents[2]
STEPS = 240
# Checkpoints are many steps apart, so that a killed run has something to repeat.
TRAINING = {
    "steps": STEPS,
    "replicas": 2,
    "ema_decay": 0.95,
    "restart_probability": 0.3,
    "eval_every": 80,
    "checkpoint_every": 20,
    "log_every": 1,
}
MODEL = {"dropout_input": 0.2, "dropout_output": 0.2, "hidden_size": 48}
TIMINGS = ("seconds", "chars_per_s")
ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
PATIENCE_S = 240
PORT = 29511  # of a namespace's own


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(FABLE)
    write_toml(tmp_path / "tiny.toml", tiny_document(model=MODEL, training=TRAINING))
    return tmp_path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run of one process on two threads."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "text.txt").write_text(FABLE)
    write_toml(folder / "tiny.toml", tiny_document(model=MODEL, training=TRAINING))
    subprocess.run(train(folder), env={**os.environ, **ENVIRONMENT}, check=True, timeout=PATIENCE_S)
    return folder / "run"


def train(folder: Path, *flags: str) -> list[str]:
    module = [sys.executable, "-m", "training"]
    return [*module, "train", str(folder / "tiny.toml"), "--run", str(folder / "run"), *flags]


def torchrun(folder: Path, *flags: str, resume: bool = False) -> list[str]:
    _, *words = train(folder, *(["--resume"] if resume else []))
    return [sys.executable, "-m", "torch.distributed.run", *flags, "-m", "--", *words[1:]]


def start(command: Sequence[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def last_step(folder: Path) -> int:
    lines = read_log(folder / "run/log.jsonl")
    return int(lines[-1]["step"]) if lines else 0


def wait_until(there: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not there():
        assert process.poll() is None, "ended too early"
        assert time.monotonic() < give_up
        time.sleep(0.02)


def is_training(folder: Path, step: int) -> bool:
    return last_step(folder) >= step and len(ranks(folder)) == 2


def wait_until_restarted(folder: Path, killed_at: int, process: "subprocess.Popen[str]") -> None:
    """The log is cut back to the checkpoint then."""

    def restarted() -> bool:
        return 0 < last_step(folder) < killed_at or last_step(folder) == STEPS

    wait_until(restarted, process)


def ranks(folder: Path) -> dict[int, int]:
    """The ids of the processes that train in the folder, by rank; torchrun itself has none."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode().split("\0")
            variables = (process / "environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # has ended, or belongs to somebody else
        values = dict(x.partition("=")[::2] for x in variables)
        if str(folder / "run") in words and "RANK" in values:
            found[int(values["RANK"])] = int(process.name)
    return found


def log_without_timings(run: Path) -> list[dict[str, Any]]:
    lines = read_log(run / "log.jsonl")
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in lines]


def assert_as(undisturbed: Path, run: Path) -> None:
    """Every logged loss, the last state and the best weights are the same to the bit."""
    assert log_without_timings(run) == log_without_timings(undisturbed)
    for file in (BEST, LAST):
        wanted, _ = checkpoint.read(undisturbed / file)
        found, _ = checkpoint.read(run / file)
        assert [name for name, x in wanted.items() if not torch.equal(x, found[name])] == []


def test_a_run_whose_ranks_are_killed_ends_with_the_same_weights(
    folder: Path, undisturbed: Path
) -> None:
    flags = ["--standalone", "--nproc-per-node=2", "--max-restarts=5"]
    process = start(torchrun(folder, *flags))
    # Once the leader, once the other, and once more right after a restart.
    for rank, step in [(1, 50), (0, 110), (1, 115), (0, 170)]:
        wait_until(partial(is_training, folder, step), process)
        os.kill(ranks(folder)[rank], signal.SIGKILL)
        wait_until_restarted(folder, last_step(folder), process)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    assert_as(undisturbed, folder / "run")
    assert ranks(folder) == {}


@pytest.mark.parametrize("to", ["torchrun", "another rank"])
def test_a_signal_stops_all_ranks_with_one_checkpoint_that_one_process_continues(
    folder: Path, undisturbed: Path, to: str
) -> None:
    process = start(torchrun(folder, "--standalone", "--nproc-per-node=2"))
    wait_until(lambda: last_step(folder) >= 50, process)
    os.kill(process.pid if to == "torchrun" else ranks(folder)[1], signal.SIGTERM)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode != 0
    assert output.count("stopped by SIGTERM; to continue: ") == 1, output
    assert ranks(folder) == {}
    assert last_step(folder) < STEPS
    subprocess.run(
        train(folder, "--resume"),
        env={**os.environ, **ENVIRONMENT},
        check=True,
        timeout=PATIENCE_S,
    )
    assert_as(undisturbed, folder / "run")


def test_a_run_that_diverges_says_so_once(folder: Path) -> None:
    write_toml(
        folder / "tiny.toml",
        tiny_document(model=MODEL, training={**TRAINING, "learning_rate": 1e9, "warmup_steps": 1}),
    )
    process = start(torchrun(folder, "--standalone", "--nproc-per-node=2"))
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode != 0
    assert output.count("error: ") == output.count("error: diverged at step ") == 1, output


@pytest.mark.skipif(skip_reason() is not None, reason=str(skip_reason()))
def test_two_machines_without_a_shared_folder_train_as_one_process(
    folder: Path, undisturbed: Path
) -> None:
    """A rank of the second machine is killed once; its number of restarts is then another."""
    with nodes(2) as (first, second):
        flags = ["--nnodes=2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d"]
        flags += [f"--rdzv-endpoint={first.address}:{PORT}", "--rdzv-id=test"]

        def on(address: str, role: str) -> list[str]:
            return torchrun(folder, *flags, f"--local-addr={address}", f"--rdzv-conf={role}")

        output = folder / "output.txt"
        with output.open("w") as stream:
            process = first.start(
                on(first.address, "is_host=1"),
                env=ENVIRONMENT,
                output=stream,
            )
            words = on(second.address, "is_host=0")
            # The folder is hidden from the second machine: it has neither the text nor the run.
            hidden = f"mount -t tmpfs none {shlex.quote(str(folder))} && exec {shlex.join(words)}"
            other = second.start(["sh", "-c", hidden], env=ENVIRONMENT, output=stream)
            wait_until(lambda: last_step(folder) >= 50, process)
            (victim,) = [pid for pid in ranks(folder).values() if pid in second.pids()]
            os.kill(victim, signal.SIGKILL)
            wait_until_restarted(folder, last_step(folder), process)
            ended = [process.wait(PATIENCE_S), other.wait(PATIENCE_S)]
        assert ended == [0, 0], output.read_text()
        assert second.pids() == []
    assert_as(undisturbed, folder / "run")
