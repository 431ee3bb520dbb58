"""Job arrays: what a task of Slurm's and a pod of Kubernetes' run is one run of a grid."""

import os
import subprocess
import sys
from typing import Any

import pytest
import yaml

from tests.end_to_end.server import ROOT
from training.__main__ import main

FOLDER = ROOT / "docker/sweep"
GRID = ["--set", "training.seed=1,2"]
CONFIG = "training/configs/alice-lstm.toml"


@pytest.fixture(scope="module")
def job() -> Any:
    return yaml.safe_load((FOLDER / "job.yaml").read_text())


def test_a_slurm_task_trains_the_run_with_its_number() -> None:
    done = subprocess.run(
        [FOLDER / "slurm.sh", CONFIG, *GRID],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "PYTHON": "echo", "SLURM_ARRAY_TASK_ID": "1"},
        capture_output=True,
        check=True,
        text=True,
    )
    assert done.stdout.split() == ["-m", "training", "sweep", CONFIG, *GRID, "--only", "1"]


def test_the_directives_for_slurm_come_before_the_first_command() -> None:
    lines = (FOLDER / "slurm.sh").read_text().splitlines()
    commands = [i for i, line in enumerate(lines) if line and not line.startswith("#")]
    assert max(i for i, line in enumerate(lines) if line.startswith("#SBATCH")) < commands[0]
    # Slurm signals the shell that it started: it must have become the sweep.
    assert lines[commands[0]].startswith("exec ")


def test_the_pods_of_the_job_train_the_runs_of_its_grid(
    job: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    *arguments, index = container["args"]
    assert index == "--only=$(JOB_COMPLETION_INDEX)"
    arguments[arguments.index("mine.toml")] = str(ROOT / CONFIG)
    assert main([*arguments, "--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == job["spec"]["completions"]


def test_kubernetes_knows_every_field_of_the_job() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kubernetes_validate", "--strict", FOLDER / "job.yaml"],
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
