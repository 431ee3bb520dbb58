"""`adapt` at every edge: the same numbers, said in the answer, refused where it cannot be."""

from collections.abc import Iterator
from typing import Any

import pytest

from service.app import create_app
from service.bundle.store import write_bundle
from service.settings import Settings
from tests.bundles import tiny_encoder_decoder_files, tiny_files
from tests.fakes import AppClient

UNABLE, PAIRS = "tiny-lstm", "tiny-pairs"
LINES = {"content-type": "text/plain"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppClient]:
    folder = tmp_path_factory.mktemp("models")
    write_bundle(folder, *tiny_files("lstm"))
    write_bundle(folder, *tiny_encoder_decoder_files(name=PAIRS))
    with AppClient(create_app(Settings(models_dir=folder))) as running:
        yield running


# --- what is refused -----------------------------------------------------------------------------

BODIES: dict[str, dict[str, Any]] = {
    "/generate": {"prompt": "a", "max_tokens": 1},
    "/score": {"text": "a"},
    "/v1/completions": {"prompt": "a", "max_tokens": 1},
}


@pytest.mark.parametrize("path", BODIES)
def test_a_model_that_cannot_adapt_is_refused_at_the_field(client: AppClient, path: str) -> None:
    answer = client.post(path, json={"model": UNABLE, "adapt": True, **BODIES[path]})
    assert answer.status_code == 422
    told = answer.json()
    where = told["error"]["param"] if "error" in told else told["errors"][0]["pointer"]
    assert where in {"adapt", "/adapt"}
    assert "cannot adapt" in answer.text
    assert client.ask(path, model=UNABLE, adapt=False, **BODIES[path])


@pytest.mark.parametrize("model", [UNABLE, PAIRS])
def test_kserve_s_protocol_names_the_parameter(client: AppClient, model: str) -> None:
    body = {"text_input": "a", "parameters": {"adapt": True}}
    for path in ("generate", "generate_stream"):
        answer = client.post(f"/v2/models/{model}/{path}", json=body)
        assert answer.status_code == 422
        assert answer.json()["error"].endswith("(adapt)")


def test_an_encoder_decoder_does_not_adapt(client: AppClient) -> None:
    body = {"model": PAIRS, "source": "a", "text": "a"}
    answer = client.post("/score", json={**body, "adapt": True})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/adapt")
    assert client.ask("/score", **body)["adapt"] is False


@pytest.mark.parametrize("mode", ["lines", "total"])
def test_a_stream_is_refused_before_its_answer(client: AppClient, mode: str) -> None:
    query = {"model": UNABLE, "adapt": "true", "mode": mode}
    answer = client.post("/score", params=query, headers=LINES, content="a\nb\n")
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/adapt")


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("given", [1, "true", None, []])
def test_anything_but_a_boolean_is_refused(client: AppClient, path: str, given: Any) -> None:
    answer = client.post(path, json={"model": UNABLE, "adapt": given, **BODIES[path]})
    is_default = given is None and path.startswith("/v1")  # where null means: as if left out
    assert answer.status_code == (200 if is_default else 422)
    if not is_default:
        assert "valid boolean" in answer.text


def test_a_query_says_what_a_boolean_is(client: AppClient) -> None:
    query = {"model": UNABLE, "adapt": "maybe"}
    answer = client.post("/score", params=query, headers=LINES, content="a\n")
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/adapt")
