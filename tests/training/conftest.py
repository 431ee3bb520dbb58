"""One thread and no spinning: models this small gain nothing, and neighbours lose."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Whatever an earlier test has set."""
    torch.set_num_threads(1)
