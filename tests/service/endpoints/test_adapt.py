"""`adapt` at every edge: the same numbers, said in the answer, refused where it cannot be."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from service.app import create_app
from service.bundle.text import Vocabulary
from service.settings import Settings
from service.tasks.language_model import LanguageModelEngine
from tests.bundles import (
    ALPHABET,
    in_memory,
    manifest_of,
    plain_files,
)
from tests.fakes import AppClient, FakeSession
from tests.service.events import parsed

# The last one answers as the first one does while it adapts.
ABLE, UNABLE, PAIRS, ADAPTED = "able", "tiny-lstm", "tiny-pairs", "adapted"
LINES = {"content-type": "text/plain"}
TEXT = "a rabbit, a rabbit, a rabbit"
WRITTEN = {"max_tokens": 24, "seed": 5}
VOCAB_SIZE = 4 + len(ALPHABET)


@pytest.fixture(scope="module")
def client(both_kinds: AppClient) -> AppClient:
    return both_kinds


def able() -> LanguageModelEngine:
    """An engine of fakes that adapts, with a manifest that says so."""
    manifest, files = plain_files(ABLE, ALPHABET)
    (sequence,) = manifest.graphs
    (known,) = manifest.golden
    part = {"name": "gru", "model": manifest.model, "weight": 1.0, "temperature": 0.9}
    learned = {"name": "learned", "dtype": "float32", "shape": [VOCAB_SIZE]}
    adapt = {"states": [learned], "rank": None, "rate": 0.01, "decay": 0.0}
    graph = {"role": "adapt", "file": "adapt.onnx", "sha256": "a" * 64}
    changes = {
        "parts": [part],
        "fit": {"split": "valid", "chars": 100},
        "adapt": {**adapt, "weights": [1.0], "temperatures": [0.8]},
        "golden": [known, known.model_copy(update={"adapt": True})],
    }
    vocab = Vocabulary.of_characters(ALPHABET)
    both = [sequence, sequence.model_copy(update=graph)]
    manifest = manifest_of(vocab, both, name=ABLE, **changes)
    session, adapting = FakeSession(VOCAB_SIZE), FakeSession(VOCAB_SIZE, adapts=True)
    return LanguageModelEngine(
        in_memory(manifest, files | {"adapt.onnx": b""}),
        session,
        Settings(),
        precision="fp32",
        adapting=adapting,
    )


def adapted() -> LanguageModelEngine:
    session = FakeSession(VOCAB_SIZE, adapts=True)
    bundle = in_memory(*plain_files(ADAPTED, ALPHABET))
    return LanguageModelEngine(bundle, session, Settings(), precision="fp32")


@pytest.fixture(scope="module")
def adaptive() -> Iterator[AppClient]:
    with AppClient(create_app(Settings(), [able(), adapted()])) as running:
        yield running


def score(client: AppClient, model: str = ABLE, text: str = TEXT, **options: Any) -> Any:
    return client.ask("/score", model=model, text=text, **options)


def lines(client: AppClient, content: str, **query: Any) -> list[Any]:
    answer = client.post("/score", params={"model": ABLE, **query}, headers=LINES, content=content)
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def text_of(answer: Any) -> str:
    text: str = answer["results"][0]["choices"][0]["text"]
    return text


# --- what is answered ----------------------------------------------------------------------------


def test_a_score_says_whether_the_model_adapted(adaptive: AppClient) -> None:
    plain, adapted = score(adaptive), score(adaptive, adapt=True)
    assert score(adaptive, adapt=False)["results"] == plain["results"]
    assert (plain["adapt"], adapted["adapt"]) == (False, True)
    assert adapted["results"] == score(adaptive, ADAPTED)["results"] != plain["results"]


@pytest.mark.parametrize("adapt", [False, True])
def test_streamed_scores_have_the_numbers_of_the_json_request(
    adaptive: AppClient, adapt: bool
) -> None:
    texts = [TEXT, TEXT[::-1]]
    wanted = [score(adaptive, text=text, adapt=adapt)["results"][0]["logprob"] for text in texts]
    found = lines(adaptive, "\n".join(texts), adapt=adapt)
    assert [line["logprob"] for line in found] == wanted
    *_, total = lines(adaptive, TEXT, adapt=adapt, mode="total", every=10)
    assert (total["done"], total["logprob"]) == (True, wanted[0])


def test_a_generation_says_whether_the_model_adapted_and_so_does_its_stream(
    adaptive: AppClient,
) -> None:
    body = {"model": ABLE, "prompt": TEXT, **WRITTEN}
    told = {adapt: adaptive.ask("/generate", **body, adapt=adapt) for adapt in (False, True)}
    assert {adapt: answer["adapt"] for adapt, answer in told.items()} == {False: False, True: True}
    assert text_of(told[True]) != text_of(told[False])
    assert text_of(told[True]) == text_of(adaptive.ask("/generate", **body | {"model": ADAPTED}))
    for adapt, answer in told.items():
        stream = adaptive.post("/generate", json={**body, "adapt": adapt, "stream": True})
        *tokens, done = parsed(stream.content)
        assert "".join(json.loads(x.data)["text"] for x in tokens) == text_of(answer)
        assert json.loads(done.data)["adapt"] is adapt


@pytest.mark.parametrize("adapt", [False, True, None])
def test_openai_s_and_kserve_s_protocols_have_it_as_an_extension(
    adaptive: AppClient, adapt: bool | None
) -> None:
    body = {"model": ABLE, "prompt": TEXT, **WRITTEN}
    wanted = text_of(adaptive.ask("/generate", **body, adapt=bool(adapt)))
    assert adaptive.ask("/v1/completions", **body, adapt=adapt)["choices"][0]["text"] == wanted
    stream = adaptive.post("/v1/completions", json={**body, "adapt": adapt, "stream": True})
    *chunks, _ = (event.data for event in parsed(stream.content))
    assert "".join(json.loads(x)["choices"][0]["text"] for x in chunks) == wanted
    path = f"/v2/models/{ABLE}/generate"
    for given in ({"parameters": {**WRITTEN, "adapt": adapt}}, {**WRITTEN, "adapt": adapt}):
        assert adaptive.ask(path, text_input=TEXT, **given)["text_output"] == wanted
    stream = adaptive.post(f"{path}_stream", json={"text_input": TEXT, **WRITTEN, "adapt": adapt})
    assert "".join(json.loads(x.data)["text_output"] for x in parsed(stream.content)) == wanted


def test_the_fingerprint_says_how_a_completion_adapted(adaptive: AppClient) -> None:
    body = {"model": ABLE, "prompt": "a", "max_tokens": 1}
    plain, adapted = (
        adaptive.ask("/v1/completions", **body, adapt=adapt)["system_fingerprint"]
        for adapt in (False, True)
    )
    assert adapted.startswith(f"{plain}-")


# --- what the models are -------------------------------------------------------------------------


def test_the_models_say_whether_they_adapt_and_how(adaptive: AppClient, client: AppClient) -> None:
    listed = {x["name"]: x["adapts"] for x in adaptive.get("/models").json()["models"]}
    assert listed == {ABLE: True, ADAPTED: False}
    found = adaptive.get(f"/models/{ABLE}").json()
    (part,) = found["parts"]
    assert found["adapts"]
    assert (part["name"], part["weight"], part["temperature"]) == ("gru", 1.0, 0.9)
    assert (found["exponent"], found["fit"]) == (1.0, {"split": "valid", "chars": 100})
    assert (found["adapt"]["rate"], found["adapt"]["temperatures"]) == (0.01, [0.8])
    for name in (UNABLE, PAIRS):
        assert client.get(f"/models/{name}").json()["adapts"] is False
    unable = client.get(f"/models/{UNABLE}").json()
    assert (unable["adapt"], unable["fit"], unable["parts"]) == (None, None, [])


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
