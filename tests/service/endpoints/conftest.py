"""Servers of every kind of model, for the tests of endpoints that need no server of their own."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from service.app import create_app
from service.bundle.labeler import LabelerBundle
from service.bundle.store import read_bundle, write_bundle
from service.bundle.text import SideNormalization
from service.runtime.labeler import OnnxLabelerSession
from service.settings import Settings
from tests.bundles import tiny_encoder_decoder_files, tiny_files
from tests.fakes import AppClient
from tests.labelers import SORTS, tiny_labeler_files


@pytest.fixture(scope="module")
def both_kinds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppClient]:
    """Of an app with the models `tiny-lstm` and `tiny-pairs`."""
    folder = tmp_path_factory.mktemp("models")
    write_bundle(folder, *tiny_files("lstm"))
    write_bundle(folder, *tiny_encoder_decoder_files(name="tiny-pairs"))
    with AppClient(create_app(Settings(models_dir=folder))) as running:
        yield running


@pytest.fixture(scope="package")
def labelers_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a labeler of every sort, and `tiny-lstm`. Texts of `tiny-forward` go on."""
    folder = tmp_path_factory.mktemp("labelers")
    write_bundle(folder, *tiny_files("lstm"))
    for sort in SORTS:
        manifest, files = tiny_labeler_files(sort)
        if sort == "forward":
            rules = SideNormalization(strip=False)
            side = manifest.text.model_copy(update={"normalization": rules})
            manifest = manifest.model_copy(update={"text": side})
        write_bundle(folder, manifest, files)
    return folder


@pytest.fixture(scope="module")
def labelers(labelers_dir: Path) -> Iterator[AppClient]:
    """Of an app that serves this folder."""
    with AppClient(create_app(Settings(models_dir=labelers_dir, engine_threads=2))) as running:
        yield running


@pytest.fixture(scope="package")
def label_sessions(labelers_dir: Path) -> Mapping[str, OnnxLabelerSession]:
    """The sessions of the labelers, by name, to compare with."""
    found = {}
    for sort in SORTS:
        bundle = read_bundle(labelers_dir / f"tiny-{sort}")
        assert isinstance(bundle, LabelerBundle)
        found[f"tiny-{sort}"] = OnnxLabelerSession(bundle, "int8")
    return found
