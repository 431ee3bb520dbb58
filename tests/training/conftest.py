"""One thread and no spinning: models this small gain nothing, and neighbours lose."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch

from tests.training.helpers import Main
from training.__main__ import main


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Whatever an earlier test has set."""
    torch.set_num_threads(1)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Main:
    """Run a command: exit status, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run
