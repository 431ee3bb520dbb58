"""`models_bytes`: models are known from the start and opened at their first use."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from service.app import create_app
from service.bundle.files import BundleError
from service.bundle.store import read_bundle, write_bundle
from service.settings import Settings
from service.tasks.cards import Card
from service.tasks.decisions import Decision
from service.tasks.registry import ModelRegistry
from tests.bundles import endless_files, tiny_encoder_decoder_files, tiny_files
from tests.fakes import AppClient

NAMES = [f"m{i}" for i in range(6)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six small models."""
    folder = tmp_path_factory.mktemp("many")
    for name in NAMES:
        write_bundle(folder, *tiny_files("gru", name=name))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy that may be broken."""
    return shutil.copytree(made, tmp_path / "models")


def one_model(folder: Path) -> int:
    """What one of the models is estimated to take."""
    manifest = read_bundle(folder / "m0").manifest
    return Card.of_manifest(manifest, manifest.precision).open_bytes


def client_of(folder: Path, models: float = 2.5, **settings: Any) -> AppClient:
    """An application with memory for so many models."""
    budget = int(models * one_model(folder))
    return AppClient(create_app(Settings(models_dir=folder, models_bytes=budget, **settings)))


@pytest.fixture
def client(folder: Path) -> Iterator[AppClient]:
    """Memory for two of the six."""
    with client_of(folder) as client:
        yield client


def registry_of(client: AppClient) -> ModelRegistry:
    registry: ModelRegistry = client.app.state.registry
    return registry


def score(client: AppClient, model: str) -> int:
    return client.request("POST", "/score", json={"model": model, "text": "abc"}).status_code


def test_everything_is_known_and_ready_and_nothing_is_open(client: AppClient) -> None:
    assert [x["name"] for x in client.get("/models").json()["models"]] == NAMES
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["engines"]) == (200, [])
    assert len(client.get("/v1/models").json()["data"]) == len(NAMES)
    assert client.get("/v2/models/m3/ready").status_code == 200
    assert client.get("/v2/health/ready").status_code == 200
    assert not registry_of(client).engines


def test_a_model_is_opened_at_its_first_use_and_the_longest_unused_is_closed(
    client: AppClient,
) -> None:
    for name in ("m0", "m1", "m0", "m2"):
        assert score(client, name) == 200
    assert sorted(registry_of(client).engines) == ["m0", "m2"]
    assert [x["model"] for x in client.get("/readyz").json()["engines"]] == ["m0", "m2"]
    numbers = client.get("/metrics").text
    assert "unroll_models 6.0" in numbers
    assert "unroll_models_open 2.0" in numbers
    assert 'unroll_model_info{model="m1"' not in numbers


def test_answers_are_the_same_after_a_model_was_closed(client: AppClient) -> None:
    def answer() -> Any:
        body = {"model": "m0", "text": "abc"}
        return client.request("POST", "/score", json=body).json()["results"]

    before = answer()
    for name in NAMES:
        score(client, name)
    assert "m0" not in registry_of(client).engines
    assert answer() == before


def test_a_request_for_what_the_model_lacks_does_not_open_it(client: AppClient) -> None:
    answer = client.request("POST", "/translate", json={"model": "m0", "source": "abc"})
    assert answer.status_code == 422
    assert not registry_of(client).engines


def test_a_bundle_that_fails_at_its_first_use_is_listed_and_tried_again_when_it_changes(
    folder: Path, client: AppClient
) -> None:
    graphs = [x for x in (folder / "m0").iterdir() if x.suffix == ".onnx"]
    kept = [x.read_bytes() for x in graphs]
    for graph in graphs:
        graph.write_bytes(b"broken")
    for _ in range(2):
        answer = client.request("POST", "/score", json={"model": "m0", "text": "abc"})
        assert (answer.status_code, answer.json()["type"]) == (503, "model-unusable")
    ready = client.get("/readyz")
    assert (ready.status_code, [x["name"] for x in ready.json()["failed"]]) == (200, ["m0"])
    assert client.get("/v2/models/m0/ready").status_code == 503
    assert score(client, "m1") == 200
    for graph, data in zip(graphs, kept, strict=True):
        graph.write_bytes(data)
    os.utime(folder / "m0/manifest.json", ns=(1, 1))
    assert score(client, "m0") == 200
    assert client.get("/readyz").json()["failed"] == []


def test_a_graph_that_never_ends_is_refused_by_the_trial(folder: Path) -> None:
    write_bundle(folder, *endless_files(hoards=False, name="endless"))
    with client_of(folder, open_timeout_s=1.0) as client:
        answer = client.request("POST", "/score", json={"model": "endless", "text": "abc"})
        assert answer.json()["type"] == "model-unusable"
        assert "open_timeout_s" in answer.json()["detail"]
        assert score(client, "m0") == 200


def test_a_folder_that_has_changed_is_served_as_it_is_now(folder: Path, client: AppClient) -> None:
    assert score(client, "m0") == 200
    write_bundle(folder, *tiny_files("gru", name="m0", description="Another."))
    for name in NAMES[1:4]:
        score(client, name)  # m0 is closed
    assert score(client, "m0") == 200
    assert client.get("/models/m0").json()["description"] == "Another."
    shutil.rmtree(folder / "m1")
    for name in NAMES[2:5]:
        score(client, name)
    assert score(client, "m1") == 404
    assert "m1" not in [x["name"] for x in client.get("/models").json()["models"]]


def test_reload_and_unload_of_models_that_are_open_or_not(folder: Path, client: AppClient) -> None:
    registry = registry_of(client)

    def reload(name: str, _: object) -> Any:
        return registry.reload(name)

    assert score(client, "m0") == 200
    for name in ("m0", "m1"):
        write_bundle(folder, *tiny_files("gru", name=name, description="Another."))
        assert client.run(partial(reload, name)).changed
    assert not registry.engines
    assert client.get("/models").json()["models"][0]["description"] == "Another."
    assert score(client, "m0") == 200
    client.run(lambda _: registry.unload("m0"))
    assert score(client, "m0") == 404
    assert client.run(lambda _: registry.load("m0")).changed
    assert not client.run(lambda _: registry.load("m0")).changed
    assert score(client, "m0") == 200


def test_a_failure_of_a_version_that_was_replaced_meanwhile_is_not_that_of_the_new_one(
    client: AppClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = registry_of(client)

    def replaced(_folder: Path) -> str:
        monkeypatch.undo()
        registry.cards["m0"] = replace(registry.cards["m0"])
        raise BundleError("half copied")

    monkeypatch.setattr(registry._opener.trial, "check", replaced)
    assert score(client, "m0") == 503
    assert score(client, "m0") == 200


def test_a_model_that_is_removed_while_it_waits_for_room_is_not_found(
    client: AppClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = registry_of(client)

    def removed(_count: int) -> bool:
        registry.carry_out(Decision(verb="drop", name="m0", stamp=None))
        return True

    assert registry._first_use is not None
    monkeypatch.setattr(registry._first_use.models, "_make_room", removed)
    assert score(client, "m0") == 404


def test_models_in_use_leave_no_room_and_the_limit_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.tasks.first_use._PATIENCE_S", 0.05)
    with client_of(folder, models=1.5) as client:
        assert score(client, "m0") == 200
        registry_of(client).engines["m0"].holds += 1
        answer = client.request("POST", "/score", json={"model": "m1", "text": "abc"})
        assert (answer.status_code, answer.json()["type"]) == (503, "no-room-for-model")
        assert answer.headers["Retry-After"] == "1"
        assert "models_bytes" in answer.json()["detail"]
        registry_of(client).engines["m0"].holds -= 1
        assert score(client, "m1") == 200


def test_a_bundle_larger_than_the_memory_for_all_is_refused_at_the_start(folder: Path) -> None:
    settings = Settings(models_dir=folder, models_bytes=1_000_000)
    with pytest.raises(BundleError, match=r"m0: it takes about .* MiB .* models_bytes leaves 1\.0"):
        create_app(settings).state.registry.load_all()


@pytest.mark.parametrize(
    "files", [tiny_files("gru", name="x"), tiny_encoder_decoder_files(name="x")]
)
def test_a_card_says_what_the_engine_says(tmp_path: Path, files: Any) -> None:
    write_bundle(tmp_path, *files)
    registry: ModelRegistry = create_app(Settings(models_dir=tmp_path)).state.registry
    registry.load_all()
    engine = registry.engines["x"]
    assert Card.of_manifest(engine.manifest, engine.precision) == Card.of_engine(engine)


def test_models_come_in_pages(client: AppClient) -> None:
    first = client.get("/models", params={"limit": 4}).json()
    assert ([x["name"] for x in first["models"]], first["next"]) == (NAMES[:4], "m3")
    last = client.get("/models", params={"limit": 4, "after": first["next"]}).json()
    assert ([x["name"] for x in last["models"]], last["next"]) == (NAMES[4:], None)
    assert client.get("/models", params={"after": "zzz"}).json() == {"models": [], "next": None}


@pytest.mark.parametrize("limit", ["0", "-1", "1001", "many"])
def test_an_impossible_page_is_refused(client: AppClient, limit: str) -> None:
    answer = client.get("/models", params={"limit": limit})
    assert answer.status_code == 422
    assert json.loads(answer.text)["errors"][0]["pointer"].endswith("limit")


def test_a_model_that_is_closed_before_its_request_holds_it_is_not_used(
    client: AppClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_use = registry_of(client)._first_use
    assert first_use is not None
    opened = first_use.models.opened

    async def and_closed(name: str, count: int) -> Any:
        engine = await opened(name, count)
        first_use.let_go(name)  # as a reload does
        return engine

    monkeypatch.setattr(first_use.models, "opened", and_closed)
    assert score(client, "m0") == 503
    monkeypatch.undo()
    assert score(client, "m0") == 200
