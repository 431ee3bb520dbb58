"""Processes train as threads do, to the bit; one start of two processes serves all cases."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training.helpers import tiny_document, tiny_ngram_document, tiny_trainer, write_toml
from tests.training.loop.cases import CASES, train
from training.__main__ import main
from training.config import load_config
from training.experiments.company import check_divides
from training.loop import checkpoint, processes
from training.loop.checkpoint import LAST
from training.loop.interfaces import interface_towards
from training.loop.task import TrainingError

ROOT = Path(__file__).parents[3]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case on threads (half, whole), and on two processes (begun, ended)."""
    folder = tmp_path_factory.mktemp("processes")
    for number, make in enumerate(CASES.values()):
        case = folder / f"case.{number}"
        run = make(case)
        train(run)
        shutil.copy(case / LAST, case / "half.safetensors")
        train(run)
        shutil.copy(case / LAST, case / "whole.safetensors")
        run.task.close()
    ended = subprocess.run(
        [*TORCHRUN, "-m", "--", "tests.training.loop.ranks", str(folder)],
        cwd=ROOT,
        env={**os.environ, "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("on_processes", "on_threads"), [("begun", "half"), ("ended", "whole")])
def test_two_processes_leave_the_checkpoint_of_two_threads(
    trained: Path, case: str, on_processes: str, on_threads: str
) -> None:
    folder = trained / f"case.{[*CASES].index(case)}"
    found, record = checkpoint.read(folder / f"{on_processes}.safetensors")
    wanted, wanted_record = checkpoint.read(folder / f"{on_threads}.safetensors")
    assert record == wanted_record
    assert found.keys() == wanted.keys()
    assert [name for name, x in found.items() if not torch.equal(x, wanted[name])] == []


# --- refusals -------------------------------------------------------------------------------------


def test_replicas_that_the_processes_cannot_divide_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(
        TrainingError, match="2 processes cannot share 1 replicas evenly; set a mult"
    ):
        tiny_trainer(tmp_path)


@pytest.mark.parametrize(
    ("document", "message"),
    [(tiny_ngram_document(), "without torchrun"), (tiny_document(), "training.replicas: 2 proc")],
)
def test_what_several_processes_cannot_train_is_refused_before_the_files_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, document: dict[str, object], message: str
) -> None:
    config = load_config(write_toml(tmp_path / "tiny.toml", document))
    check_divides(config)
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(TrainingError, match=message):
        check_divides(config)


def test_commands_other_than_train_are_refused_under_torchrun(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.setenv(name, "1")
    assert main(["export", "runs/none"]) == 2
    assert "only `train`" in capsys.readouterr().err


# --- the way to another machine -------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="interfaces are found on Linux")
def test_this_machine_is_reached_by_the_loopback_interface() -> None:
    assert interface_towards("127.0.0.1") == "lo"


def test_a_host_without_an_address_has_no_interface() -> None:
    assert interface_towards("no-such-host.invalid") is None
