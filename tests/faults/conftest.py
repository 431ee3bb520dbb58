"""A folder of tiny bundles, and a server of them with small limits."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.bundle.labeler import LabelerManifest
from service.bundle.language_model import LanguageModelLimits
from service.bundle.store import write_bundle
from tests.bundles import tiny_files
from tests.end_to_end.server import Server, serve
from tests.labelers import tiny_labeler_files, unstripped

LIMITS: dict[str, Any] = {
    "max_body_bytes": 200_000,
    "max_inputs": 50,
    "max_prompt_chars": 2000,
    "max_tokens": 512,
    "max_n": 8,
    "max_cost_tokens": 8192,
    "max_stop": 4,
    "engine_threads": 1,
    "log_level": "warning",
}


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tiny-lstm`, whose texts may be long, and `tiny-gru`."""
    folder = tmp_path_factory.mktemp("models")
    for cell in ("lstm", "gru"):
        manifest, files = tiny_files(cell, limits=LanguageModelLimits(max_tokens=100_000))
        write_bundle(folder, manifest, files)
    return folder


def tiny_labelers() -> Iterator[tuple[LabelerManifest, dict[str, bytes]]]:
    """`tiny-forward`, which classifies texts and can go on from a state; `tiny-chain`, a tagger."""
    manifest, files = tiny_labeler_files("forward")
    yield unstripped(manifest), files
    yield tiny_labeler_files("chain")


@pytest.fixture(scope="session")
def more_models(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those and two labelers."""
    folder = shutil.copytree(tiny_models, tmp_path_factory.mktemp("more") / "models")
    for manifest, files in tiny_labelers():
        write_bundle(folder, manifest, files)
    return folder


@pytest.fixture(scope="module")
def server(more_models: Path) -> Iterator[Server]:
    """One for the faults that leave nothing behind."""
    # An address of this machine, oddly spelled.
    with serve(more_models, host="127.1", **LIMITS) as running:
        yield running
