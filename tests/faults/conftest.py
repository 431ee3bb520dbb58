"""A folder of tiny bundles, and a server of them with small limits."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.bundle.language_model import LanguageModelLimits
from service.bundle.store import write_bundle
from tests.bundles import tiny_files
from tests.end_to_end.server import Server, serve

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


@pytest.fixture(scope="module")
def server(tiny_models: Path) -> Iterator[Server]:
    """One for the faults that leave nothing behind."""
    # An address of this machine, oddly spelled.
    with serve(tiny_models, host="127.1", **LIMITS) as running:
        yield running
