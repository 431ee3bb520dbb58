"""The untrained bundles, and the service that serves all of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.app import create_app
from service.bundle import write_bundle
from service.settings import Settings
from tests.bundles import tiny_files
from tests.fakes import AppClient

CELLS = ("rnn", "gru", "lstm")


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tiny-rnn`, `tiny-gru` and `tiny-lstm`."""
    folder = tmp_path_factory.mktemp("models")
    for cell in CELLS:
        manifest, files = tiny_files(cell)
        write_bundle(folder, manifest, files)
    return folder


@pytest.fixture(scope="module")
def client(models_dir: Path) -> Iterator[AppClient]:
    with AppClient(create_app(Settings(models_dir=models_dir))) as running:
        yield running


@pytest.fixture(params=CELLS)
def model(request: pytest.FixtureRequest) -> str:
    """The name of every served model in turn."""
    return f"tiny-{request.param}"
