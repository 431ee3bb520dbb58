"""The untrained bundles, and the service that serves all of them."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# As in tests/training: tiny exports gain nothing from a second thread that spins.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch

from service.app import create_app
from service.bundle.manifest import Precision
from service.bundle.store import write_bundle
from service.settings import Settings
from tests.bundles import tiny_files
from tests.fakes import AppClient

CELLS = ("rnn", "gru", "lstm")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """For the exports."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tiny-rnn`, `tiny-gru` and `tiny-lstm`."""
    folder = tmp_path_factory.mktemp("models")
    for cell in CELLS:
        manifest, files = tiny_files(cell)
        write_bundle(folder, manifest, files)
    return folder


# As most will run it, and with everything off that must not show.
SETTINGS: dict[str, dict[str, Any]] = {
    "int8": {"precision": "auto", "engine_threads": 2},
    "fp32": {"precision": "fp32", "engine_threads": 1, "prefix_cache_bytes": 0},
}


@pytest.fixture(scope="module", params=SETTINGS)
def precision(request: pytest.FixtureRequest) -> Precision:
    """The precision that `client` serves."""
    name: Precision = request.param
    return name


@pytest.fixture(scope="module")
def client(models_dir: Path, precision: Precision) -> Iterator[AppClient]:
    settings = Settings(models_dir=models_dir, **SETTINGS[precision])
    with AppClient(create_app(settings)) as running:
        yield running


@pytest.fixture(params=CELLS)
def model(request: pytest.FixtureRequest) -> str:
    """The name of every served model in turn."""
    return f"tiny-{request.param}"
