"""What the application says of itself: models, health, request ids, documentation, its start."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from service.app import create_app
from service.bundle.files import BundleError
from service.bundle.language_model import LanguageModelManifest
from service.bundle.manifest import Precision
from service.bundle.store import write_bundle
from service.endpoints.model_details import _examples
from service.observe.metrics import Metrics
from service.runtime.cpus import usable_cpus
from service.settings import Settings
from service.tasks.engine import Engine
from service.tasks.folders import bundle_folders
from service.tasks.registry import ModelRegistry
from tests.bundles import ALPHABET, plain_files, tiny_files
from tests.fakes import AppClient


def test_the_models_are_listed_by_name(client: AppClient, precision: Precision) -> None:
    listed = client.get("/models").json()["models"]
    assert [x["name"] for x in listed] == ["tiny-gru", "tiny-lstm", "tiny-rnn"]
    assert listed[0] == {
        "name": "tiny-gru",
        "task": "language_model",
        "description": "A bundle for tests.",
        "precision": precision,
        "adapts": False,
        "fills": True,
    }


def test_a_model_tells_what_it_is(client: AppClient, model: str) -> None:
    detail = client.get(f"/models/{model}").json()
    assert (detail["name"], detail["model"]["cell"]) == (model, model.removeprefix("tiny-"))
    assert detail["vocab_size"] == 4 + len(ALPHABET)
    assert detail["precisions"] == ["fp32", "int8"]
    assert detail["normalization"] == {
        "newlines": True,
        "fold": False,
        "lowercase": False,
        "ascii_fold": False,
        "nfc": True,
        "strip": False,
    }
    assert "golden" not in detail


def test_it_lives_and_is_ready(client: AppClient) -> None:
    assert client.get("/livez").json() == {"status": "live", "reasons": []}
    answer = client.get("/readyz")
    assert answer.status_code == 200
    ready = answer.json()
    assert (ready["status"], ready["reasons"]) == ("ready", [])
    assert [x["model"] for x in ready["engines"]] == ["tiny-gru", "tiny-lstm", "tiny-rnn"]
    assert all(x["ready"] and x["last_step_age_s"] >= 0 for x in ready["engines"])


def test_the_age_of_the_last_step_is_that_of_the_last_step(client: AppClient) -> None:
    def age() -> Any:
        return client.get("/readyz").json()["engines"][0]["last_step_age_s"]

    before = age()
    assert age() > before
    client.ask("/score", model="tiny-gru", text="abc")
    engine = client.app.state.registry.engines["tiny-gru"]
    step = max(x.last_step for x in engine.workers.schedulers)
    client.ask("/score", model="tiny-gru", text="abc")
    assert max(x.last_step for x in engine.workers.schedulers) > step


def test_an_engine_that_stopped_makes_the_service_unready_and_others_serve_on(
    models_dir: Path,
) -> None:
    with AppClient(create_app(Settings(models_dir=models_dir))) as client:
        stopped = client.app.state.registry.engines["tiny-gru"]
        client.run(lambda _: stopped.stop())
        answer = client.get("/readyz")
        assert answer.status_code == 503
        ready = answer.json()
        assert ready["status"] == "not ready"
        assert ready["reasons"] == ["the engine of tiny-gru is not running"]
        assert [x["ready"] for x in ready["engines"]] == [False, True, True]
        assert client.get("/livez").status_code == 200
        for path, field in (("/score", "text"), ("/generate", "prompt")):
            refused = client.post(path, json={"model": "tiny-gru", field: "abc"})
            assert refused.status_code == 503
            assert refused.json()["type"] == "engine-stopped"
            assert int(refused.headers["Retry-After"]) >= 1
        assert client.ask("/score", model="tiny-lstm", text="abc")


def test_a_service_without_models_is_not_ready() -> None:
    with AppClient(create_app(Settings(), [])) as client:
        answer = client.get("/readyz")
        assert (answer.status_code, answer.json()["reasons"]) == (503, ["no model is served"])
        assert client.get("/models").json() == {"models": [], "next": None}
        assert client.post("/score", json={"text": "a"}).status_code == 422


def test_after_its_end_every_engine_is_stopped(models_dir: Path) -> None:
    with AppClient(create_app(Settings(models_dir=models_dir))) as client:
        engines = list(client.app.state.registry.engines.values())
        assert all(engine.workers.alive for engine in engines)
    assert not any(engine.workers.alive for engine in engines)
    assert all(x.free for engine in engines for x in engine.workers.schedulers)


def test_nothing_is_read_from_disk_after_the_start(models_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "models"
    shutil.copytree(models_dir, copy)
    with AppClient(create_app(Settings(models_dir=copy))) as client:
        shutil.rmtree(copy)
        assert client.get("/models/tiny-rnn").status_code == 200
        assert client.ask("/score", model="tiny-rnn", text="abc")
        assert client.ask("/generate", model="tiny-gru", prompt="abc", max_tokens=3)


# --- request ids ----------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["abc", "A-b_c.9", "x" * 128, "0"])
def test_a_harmless_request_id_is_kept(client: AppClient, given: str) -> None:
    for path in ("/livez", "/nothing"):
        answer = client.get(path, headers={"X-Request-Id": given})
        assert answer.headers["X-Request-Id"] == given
    assert answer.json()["request_id"] == given


@pytest.mark.parametrize(
    "given",
    [
        b"",
        b"a b",
        b"abc\r\nX-Evil: 1",
        b"abc\n",
        b"abc\x00",
        b"\x1b[31mred",
        b"caf\xc3\xa9",
        b"x" * 129,
        b"<script>",
        b'{"a": 1}',
    ],
)
def test_any_other_request_id_is_replaced(client: AppClient, given: bytes) -> None:
    answer = client.get("/nothing", headers=[(b"X-Request-Id", given)])
    assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["X-Request-Id"])
    assert answer.json()["request_id"] == answer.headers["X-Request-Id"]
    assert "X-Evil" not in answer.headers


def test_requests_without_an_id_get_different_ones(client: AppClient) -> None:
    ids = [client.get("/livez").headers["X-Request-Id"] for _ in range(3)]
    assert len(set(ids)) == 3
    answer = client.post("/score", json={"model": "tiny-gru", "text": "a"})
    assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["X-Request-Id"])


# --- documentation --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def openapi(client: AppClient) -> Any:
    answer = client.get("/openapi.json")
    assert answer.status_code == 200
    return answer.json()


def properties(node: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Every property of every schema, with its place."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "properties" and "type" in node:
                for name, schema in value.items():
                    yield f"{where}.{name}", schema
            yield from properties(value, f"{where}.{key}")
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from properties(value, f"{where}.{i}")


def test_every_property_is_described(openapi: Any) -> None:
    found = list(properties(openapi, "openapi"))
    assert len(found) > 80
    assert [where for where, schema in found if not schema.get("description")] == []


def test_every_schema_that_is_referred_to_exists(openapi: Any) -> None:
    names = re.findall(r'"\$ref": "([^"]+)"', json.dumps(openapi))
    assert names
    for name in names:
        node = openapi
        for part in name.removeprefix("#/").split("/"):
            node = node[part]


@pytest.mark.parametrize(("path", "field"), [("/generate", "prompt"), ("/score", "text")])
def test_an_endpoint_is_documented_with_its_body_and_its_errors(
    openapi: Any, client: AppClient, path: str, field: str
) -> None:
    endpoint = openapi["paths"][path]["post"]
    content = endpoint["requestBody"]["content"]["application/json"]
    assert field in content["schema"]["properties"]
    # A prompt may be left out.
    assert content["schema"].get("required", ["prompt"]) == [field]
    example = content["example"] | {"model": "tiny-gru"}
    assert client.ask(path, **example)
    assert set(endpoint["responses"]) == {
        *("200", "400", "401", "403", "404", "413", "415", "421", "422", "429"),
        *("500", "503", "504"),
    }
    assert "application/problem+json" in endpoint["responses"]["422"]["content"]


def test_answers_have_the_documented_fields_and_no_others(openapi: Any, client: AppClient) -> None:
    schemas = openapi["components"]["schemas"]
    answer = client.ask("/score", model="tiny-gru", text="ab", tokens=True, top_logprobs=1)
    assert set(answer) == set(schemas["ScoreResponse"]["properties"])
    (result,) = answer["results"]
    assert set(result) == set(schemas["ScoreResult"]["properties"])
    assert set(result["tokens"][0]) == set(schemas["ScoreToken"]["properties"])
    answer = client.ask("/generate", model="tiny-gru", prompt="ab", max_tokens=2, logprobs=1)
    assert set(answer) == set(schemas["GenerateResponse"]["properties"])
    (choice,) = answer["results"][0]["choices"]
    assert set(choice) == set(schemas["ChoiceOut"]["properties"])
    assert set(choice["logprobs"][0]) == set(schemas["GeneratedToken"]["properties"])


def test_the_documentation_can_be_looked_at(client: AppClient) -> None:
    assert "openapi.json" in client.get("/docs").text


# --- the start ------------------------------------------------------------------------------------


def load_engines(settings: Settings) -> list[Engine]:
    """Every engine of the models folder, as the service opens them."""
    registry = ModelRegistry(settings, Metrics())
    registry.load_all()
    return list(registry.engines.values())


def test_a_models_folder_that_is_missing_or_empty_is_refused(tmp_path: Path) -> None:
    for folder, cause in ((tmp_path / "no", "No such file"), (tmp_path, "there is no bundle")):
        with pytest.raises(BundleError, match=cause):
            load_engines(Settings(models_dir=folder))


def test_files_and_the_exporters_scratch_are_no_bundles(tmp_path: Path) -> None:
    write_bundle(tmp_path, *plain_files())
    (tmp_path / "README.md").write_text("about")
    (tmp_path / ".DS_Store").write_bytes(b"")
    (tmp_path / ".writing-x").mkdir()
    assert [x.name for x in bundle_folders(tmp_path)] == ["plain"]


def test_a_stray_folder_is_refused_with_the_way_out_and_skipped_where_that_is_asked_for(
    tmp_path: Path,
) -> None:
    write_bundle(tmp_path, *tiny_files("gru"))
    (tmp_path / "lost+found").mkdir()
    cause = r"lost\+found: manifest\.json: No such file or directory; UNROLL_ON_BAD_BUNDLE=skip"
    with pytest.raises(BundleError, match=cause):
        load_engines(Settings(models_dir=tmp_path))
    served = load_engines(Settings(models_dir=tmp_path, on_bad_bundle="skip"))
    assert [x.manifest.name for x in served] == ["tiny-gru"]


@pytest.mark.parametrize("dangling", [False, True])
def test_a_folder_that_is_a_link_is_refused(tmp_path: Path, dangling: bool) -> None:
    elsewhere = write_bundle(tmp_path / "elsewhere", *plain_files())
    models = tmp_path / "models"
    models.mkdir()
    (models / "plain").symlink_to(elsewhere / "x" if dangling else elsewhere)
    with pytest.raises(BundleError, match="plain: symbolic links must stay within the folder"):
        load_engines(Settings(models_dir=models))


def test_a_model_that_falls_back_says_which_precision_it_is_served_in(tmp_path: Path) -> None:
    manifest, files = tiny_files("rnn")
    golden = [
        x.model_copy(update={"logprobs": [y - 0.1 for y in x.logprobs]})
        if x.precision == "int8"
        else x
        for x in manifest.golden
    ]
    write_bundle(tmp_path, manifest.model_copy(update={"golden": golden}), files)
    write_bundle(tmp_path, *tiny_files("gru"))
    with AppClient(create_app(Settings(models_dir=tmp_path))) as client:
        listed = client.get("/models").json()["models"]
        assert [(x["name"], x["precision"]) for x in listed] == [
            ("tiny-gru", "int8"),
            ("tiny-rnn", "fp32"),
        ]
        detail = client.get("/models/tiny-rnn").json()
        assert (detail["precision"], detail["precisions"]) == ("fp32", ["fp32", "int8"])
        assert client.ask("/score", model="tiny-rnn", text="abc")["precision"] == "fp32"
        wanted = client.ask("/score", model="tiny-rnn", text="abc")["results"]
    with AppClient(create_app(Settings(models_dir=tmp_path, precision="fp32"))) as client:
        assert client.ask("/score", model="tiny-rnn", text="abc")["results"] == wanted


@pytest.mark.parametrize(("setting", "expected"), [(None, usable_cpus()), (1, 1), (3, 3)])
def test_a_model_has_an_engine_thread_for_every_processor_or_as_set(
    models_dir: Path, setting: int | None, expected: int
) -> None:
    engines = load_engines(Settings(models_dir=models_dir, engine_threads=setting))
    assert [len(engine.workers.schedulers) for engine in engines] == [expected] * 3


def test_one_bad_bundle_keeps_the_service_from_starting(tmp_path: Path) -> None:
    write_bundle(tmp_path, *tiny_files("gru"))
    write_bundle(tmp_path, *plain_files("zzz"))  # its graph is none
    client = AppClient(create_app(Settings(models_dir=tmp_path)))
    with pytest.raises(BundleError, match=r"zzz: sequence\.fp32\.onnx: not a usable graph"):
        client.__enter__()
    client.__exit__(None, None, None)


@pytest.mark.parametrize(
    ("tokens", "examples"),
    [
        # Lines: whole ones, and not the last, which a known answer may cut off.
        ([1, 4, 5, 2, 1, 6, 2, 1, 4], ["ab", "c"]),
        ([1, 4, 5, 6], ["abc"]),  # the beginning of a long text
        ([1, 2], [""]),
    ],
)
def test_a_models_examples_are_the_held_out_texts_of_its_known_answers(
    tokens: list[int], examples: list[str]
) -> None:
    manifest = SimpleNamespace(golden=[SimpleNamespace(tokens=tokens)])
    assert _examples(cast("LanguageModelManifest", manifest), "????abc") == examples
