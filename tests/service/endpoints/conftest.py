"""A server of both kinds of model, for the tests of endpoints that need no server of their own."""

from collections.abc import Iterator

import pytest

from service.app import create_app
from service.bundle.store import write_bundle
from service.settings import Settings
from tests.bundles import tiny_encoder_decoder_files, tiny_files
from tests.fakes import AppClient


@pytest.fixture(scope="module")
def both_kinds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppClient]:
    """Of an app with the models `tiny-lstm` and `tiny-pairs`."""
    folder = tmp_path_factory.mktemp("models")
    write_bundle(folder, *tiny_files("lstm"))
    write_bundle(folder, *tiny_encoder_decoder_files(name="tiny-pairs"))
    with AppClient(create_app(Settings(models_dir=folder))) as running:
        yield running
