"""Several processes that open models at their first use carry out every change alike."""

import shutil
from pathlib import Path

import httpx
import pytest

from tests.faults.support import problem_of
from tests.faults.test_model_changes import (
    administered,
    break_hash,
    everywhere,
    names_of,
    other_version,
    text_of,
)


@pytest.fixture
def folder(tiny_models: Path, tmp_path: Path) -> Path:
    """A copy that may be broken."""
    return shutil.copytree(tiny_models, tmp_path / "models")


def description_of(client: httpx.Client) -> str:
    return str(client.get("/models/tiny-lstm").json()["description"])


def gru_status(client: httpx.Client) -> int:
    body = {"model": "tiny-gru", "text": "abc"}
    return client.post("/score", json=body).status_code


def test_changes_reach_every_process_whether_it_has_the_model_open_or_not(folder: Path) -> None:
    with administered(folder, workers=2, models_bytes=2**28) as admin:
        # Changed before its first use: all serve what is there now.
        other_version(folder, description="Another.")
        (first,) = everywhere(admin, text_of)
        assert everywhere(admin, description_of) == {"Another."}
        # Open in all of them.
        other_version(folder, scale=0.5)
        assert everywhere(admin, text_of) == {first}
        assert admin.change("tiny-lstm", "reload").json()["changed"] is True
        (second,) = everywhere(admin, text_of)
        assert second != first
        break_hash(folder / "tiny-lstm")
        assert "SHA-256" in problem_of(admin.change("tiny-lstm", "reload"), 409)["detail"]
        assert everywhere(admin, text_of) == {second}
        # Open in none of them.
        assert admin.change("tiny-gru", "unload").json()["status"] == "unloaded"
        assert everywhere(admin, names_of) == {("tiny-lstm",)}
        assert everywhere(admin, gru_status) == {404}
        assert admin.change("tiny-gru", "load").json()["changed"] is True
        assert everywhere(admin, gru_status) == {200}
