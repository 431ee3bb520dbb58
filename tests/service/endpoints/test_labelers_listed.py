"""What lists, details and foreign protocols say of labelers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.app import create_app
from service.bundle.store import write_bundle
from service.cli.bundle import models_in
from service.settings import Settings
from tests.fakes import AppClient
from tests.labelers import Sort, tiny_labeler_files, unstripped

SORTS: tuple[Sort, ...] = ("chain", "forward")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models")
    example = {"text": "a", "labels": ["O"], "found": ["O"]}
    for sort in SORTS:
        changes = {"temperature": 1.5, "examples": [example]}
        manifest, files = tiny_labeler_files(sort, changes=changes)
        write_bundle(made, unstripped(manifest), files)
    return made


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[AppClient]:
    with AppClient(create_app(Settings(models_dir=folder))) as running:
        yield running


def test_a_list_has_labelers_and_so_has_the_command_line(client: AppClient, folder: Path) -> None:
    listed = client.get("/models").json()["models"]
    assert [(x["name"], x["task"], x["fills"], x["adapts"]) for x in listed] == [
        ("tiny-chain", "labeler", False, False),
        ("tiny-forward", "labeler", False, False),
    ]
    assert models_in(folder) == listed


def test_a_labeler_tells_its_labels_and_how_it_reads(client: AppClient) -> None:
    detail = client.get("/models/tiny-chain").json()
    manifest, _ = tiny_labeler_files("chain")
    assert detail["labels"] == manifest.labels.model_dump()
    assert (detail["has_chain"], detail["reads_in_parts"]) == (True, False)
    assert (detail["tokenization"], detail["temperature"]) == ("character", 1.5)
    assert detail["vocab_size"] == manifest.text.vocab.size
    assert detail["normalization"]["nfc"] is True
    assert detail["precisions"] == ["fp32", "int8"]
    assert detail["examples"] == [{"text": "a", "labels": ["O"], "found": ["O"]}]
    for hidden in ("golden", "graphs", "states", "chain"):
        assert hidden not in detail
    forward = client.get("/models/tiny-forward").json()
    assert (forward["has_chain"], forward["reads_in_parts"]) == (False, True)


def test_a_model_that_labels_says_elsewhere_what_it_answers(client: AppClient) -> None:
    for path in ("/generate", "/translate", "/infill", "/tag"):
        text = {"/generate": "prompt", "/translate": "source", "/infill": "prefix"}.get(
            path, "text"
        )
        answer = client.post(path, json={"model": "tiny-forward", text: "a"})
        assert answer.status_code == 422
        assert "it answers /classify" in answer.json()["detail"]
    assert client.get("/v1/models").json()["data"] == []
    assert client.get("/v1/models/tiny-chain").status_code == 404
    answer = client.post("/v2/models/tiny-chain/generate", json={"text_input": "a"})
    assert answer.status_code == 404
    assert answer.json()["error"].endswith("; it answers /tag")
    assert client.get("/libretranslate/languages").json() == []
