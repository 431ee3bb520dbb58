"""`/v2`: the Open Inference Protocol. Triton's own client is in tests/clients."""

import json
from pathlib import Path
from typing import Any

import pytest

from service.app import create_app
from service.bundle.store import write_bundle
from service.settings import Settings
from tests.bundles import tiny_files
from tests.fakes import AppClient
from tests.service.events import parsed

TEXT, PAIRS = "tiny-lstm", "tiny-pairs"


@pytest.fixture(scope="module")
def client(both_kinds: AppClient) -> AppClient:
    return both_kinds


def generate(client: AppClient, model: str, text: str, **parameters: Any) -> Any:
    body = {"text_input": text, "parameters": parameters}
    answer = client.post(f"/v2/models/{model}/generate", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_health_and_metadata(client: AppClient) -> None:
    assert client.get("/v2").json()["extensions"] == ["generate", "generate_stream"]
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    for name in (TEXT, PAIRS):
        for version in ("", "/versions/1"):
            found = client.get(f"/v2/models/{name}{version}").json()
            assert (found["name"], found["versions"]) == (name, ["1"])
            assert client.get(f"/v2/models/{name}{version}/ready").json() == {"ready": True}
    assert client.get(f"/v2/models/{TEXT}/versions/2").status_code == 404
    missing = client.get("/v2/models/nothing")
    assert missing.status_code == 404
    assert set(missing.json()) == {"error"}


def test_a_text_is_continued_as_generate_does(client: AppClient) -> None:
    found = generate(client, TEXT, "the ", max_tokens=9, seed=4, details=True)
    plain = client.ask("/generate", model=TEXT, prompt="the ", max_tokens=9, seed=4, logprobs=0)
    (choice,) = plain["results"][0]["choices"]
    assert found["text_output"] == choice["text"]
    assert found["model_version"] == "1"
    told = [(x["text"], x["logprob"]) for x in found["details"]["logprobs"]]
    assert told == [(x["token"], x["logprob"]) for x in choice["logprobs"]]
    assert generate(client, TEXT, "the ", max_tokens=0)["text_output"] == ""
    assert generate(client, TEXT, "the ")["details"] is None


def test_why_it_ended_is_told_in_the_protocols_words(client: AppClient) -> None:
    reasons = {
        generate(client, TEXT, "a", max_tokens=30, seed=seed, details=True)["details"][
            "finish_reason"
        ]
        for seed in range(30)
    }
    assert reasons == {"length", "eos_token"}
    text = generate(client, TEXT, "a", max_tokens=8, temperature=0.0)["text_output"]
    stopped = generate(
        client, TEXT, "a", max_tokens=8, temperature=0.0, stop=[text[2:4]], details=True
    )
    assert stopped["details"]["finish_reason"] == "stop_sequence"


def test_the_best_of_many_has_the_best_mean(client: AppClient) -> None:
    plain = client.ask("/generate", model=TEXT, prompt="a", max_tokens=6, seed=2, n=5, logprobs=0)
    means = {
        x["text"]: sum(y["logprob"] for y in x["logprobs"]) / len(x["logprobs"])
        for x in plain["results"][0]["choices"]
    }
    found = generate(client, TEXT, "a", max_tokens=6, seed=2, best_of=5)
    assert found["text_output"] == max(means, key=means.__getitem__)


def test_a_source_is_translated_as_translate_does(client: AppClient) -> None:
    found = generate(client, PAIRS, "a cat", beam_size=3, details=True)
    plain = client.ask("/translate", model=PAIRS, source="a cat", beam_size=3, tokens=True)
    hypothesis = plain["results"][0]["hypotheses"][0]
    assert found["text_output"] == hypothesis["text"]
    told = [(x["text"], x["logprob"]) for x in found["details"]["logprobs"]]
    assert told == [(x["token"], x["logprob"]) for x in hypothesis["tokens"]]
    sampled = generate(client, PAIRS, "a cat", temperature=1.0, seed=1)
    again = client.ask("/translate", model=PAIRS, source="a cat", temperature=1.0, seed=1)
    assert sampled["text_output"] == again["results"][0]["hypotheses"][0]["text"]


@pytest.mark.parametrize("model", [TEXT, PAIRS])
def test_a_stream_says_the_same(client: AppClient, model: str) -> None:
    options = {"details": True, "max_tokens": 12}
    options |= {"seed": 3} if model == TEXT else {"beam_size": 2}
    whole = generate(client, model, "a cat", **options)
    body = {"text_input": "a cat", "parameters": options}
    answer = client.post(f"/v2/models/{model}/generate_stream", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(event.data) for event in parsed(answer.content)]
    assert "".join(event["text_output"] for event in events) == whole["text_output"]
    assert [event["done"] for event in events] == [False] * (len(events) - 1) + [True]
    assert events[-1]["details"] == whole["details"]


@pytest.mark.parametrize(
    ("model", "words", "parameters"),
    [
        (TEXT, "did you mean `max_tokens`?", {"max_token": 1}),
        (TEXT, "less than or equal to 1 (top_p)", {"top_p": 2.0}),
        (TEXT, "does not support it (beam_size)", {"beam_size": 2}),
        (TEXT, "at most", {"max_tokens": 10**9}),
        (
            TEXT,
            "use presence_penalty or frequency_penalty (repetition_penalty)",
            {"repetition_penalty": 1.1},
        ),
        (TEXT, "(bad_words)", {"bad_words": ["a"]}),
        (TEXT, "0 or left out (min_length)", {"min_length": 2}),
        (TEXT, "use max_tokens (max_new_tokens)", {"max_new_tokens": 2}),
        (PAIRS, "does not support it (stop)", {"stop": ["a"]}),
        (PAIRS, "only with a temperature above 0", {"seed": 1}),
        (PAIRS, "only with temperature 0", {"temperature": 1.0, "beam_size": 2}),
        (PAIRS, "at least 1 token", {"max_tokens": 0}),
    ],
)
def test_mistakes_are_told_in_the_protocols_form(
    client: AppClient, model: str, words: str, parameters: dict[str, Any]
) -> None:
    for path in ("generate", "generate_stream"):
        for body in (
            {"text_input": "a", "parameters": parameters},
            {"text_input": "a", **parameters},
        ):
            answer = client.post(f"/v2/models/{model}/{path}", json=body)
            assert answer.status_code == 422
            assert set(answer.json()) == {"error"}
            # Once.
            assert answer.json()["error"].count(words) == 1


@pytest.mark.parametrize(
    ("model", "words", "body"),
    [
        (TEXT, "a prompt; at most 100000 are allowed (text_input)", {"text_input": "a" * 100_001}),
        (PAIRS, "at most 60 are allowed (text_input)", {"text_input": "a" * 61}),
        (TEXT, "Input should be a valid string (text_input)", {"text_input": 1}),
        (TEXT, "(max_tokens)", {"parameters": {"max_tokens": 10**9}}),
        (TEXT, "(stop)", {"parameters": {"stop": ["a" * 257]}}),
        (TEXT, "different values (stop)", {"stop_words": ["a"], "parameters": {"stop": ["b"]}}),
        (PAIRS, "(target_prefix)", {"parameters": {"target_prefix": "a" * 200}}),
    ],
)
def test_mistakes_are_told_by_the_protocols_own_names(
    client: AppClient, model: str, words: str, body: dict[str, Any]
) -> None:
    answer = client.post(f"/v2/models/{model}/generate", json={"text_input": "a", **body})
    assert answer.status_code == 422
    assert answer.json()["error"].endswith(words)


def test_as_many_are_written_as_a_prompt_may_have_choices(client: AppClient) -> None:
    body = {"text_input": "a", "parameters": {"best_of": 17}}
    answer = client.post(f"/v2/models/{TEXT}/generate", json=body)
    assert "at most 16 are allowed (best_of)" in answer.json()["error"]


def test_a_stream_has_one_text(client: AppClient) -> None:
    body = {"text_input": "a", "parameters": {"best_of": 2}}
    answer = client.post(f"/v2/models/{TEXT}/generate_stream", json=body)
    assert "not together with a stream" in answer.json()["error"]


def test_a_dead_engine_is_not_ready(tmp_path: Path) -> None:
    write_bundle(tmp_path, *tiny_files("lstm"))
    app = create_app(Settings(models_dir=tmp_path))
    with AppClient(app) as client:
        engine = app.state.registry.engines[TEXT]
        for scheduler in engine.workers.schedulers:
            scheduler.stop()
        for path in ("/v2/health/ready", f"/v2/models/{TEXT}/ready"):
            answer = client.get(path)
            assert (answer.status_code, answer.json()) == (503, {"ready": False})


def test_what_tensorrt_llms_clients_send_is_understood(client: AppClient) -> None:
    """As its documentation asks: parameters by themselves, and lists of one empty text."""
    plain = generate(client, TEXT, "the ", max_tokens=20, seed=3)["text_output"]
    body = {
        "text_input": "the ",
        "max_tokens": 20,
        "random_seed": 3,
        "bad_words": "",
        "stop_words": [""],
        "beam_width": 1,
        "end_id": 2,
        "pad_id": 0,
        "top_k": 0,
        "return_log_probs": False,
        "stream": False,
        "exclude_input_in_output": True,
        "made_up": 1,
        "parameters": {"made_up": {}, "max_tokens": 20},
    }
    answer = client.post(f"/v2/models/{TEXT}/generate", json=body)
    assert answer.json()["text_output"] == plain
    stop = plain[3:5]
    answer = client.post(f"/v2/models/{TEXT}/generate", json=body | {"stop_words": stop})
    assert answer.json()["text_output"] == plain[: plain.index(stop)]
    body = {"text_input": "a cat", "beam_width": 3, "stop_words": "", "top_p": 1.0}
    answer = client.post(f"/v2/models/{PAIRS}/generate", json=body)
    assert (
        answer.json()["text_output"] == generate(client, PAIRS, "a cat", beam_size=3)["text_output"]
    )


def test_a_text_that_may_not_end_has_all_its_tokens(client: AppClient) -> None:
    ends = set()
    for seed in range(12):
        options = {"max_tokens": 40, "seed": seed, "details": True}
        ends.add(generate(client, TEXT, "a", **options)["details"]["finish_reason"])
        on = generate(client, TEXT, "a", **options, ignore_eos=True)
        assert (len(on["text_output"]), on["details"]["finish_reason"]) == (40, "length")
    assert "eos_token" in ends


@pytest.mark.parametrize("model", [TEXT, PAIRS])
def test_unknown_characters_are_told_with_the_details(client: AppClient, model: str) -> None:
    body = {"text_input": "a\u2603b\u2603", "details": True, "max_tokens": 3}
    whole = client.post(f"/v2/models/{model}/generate", json=body).json()
    assert whole["details"]["unknown"] == [1, 3]
    streamed = parsed(client.post(f"/v2/models/{model}/generate_stream", json=body).content)
    assert json.loads(streamed[-1].data)["details"]["unknown"] == [1, 3]


def test_tensors_are_refused_in_the_protocols_form(client: AppClient) -> None:
    body = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]}
    for version in ("", "/versions/1"):
        answer = client.post(f"/v2/models/{TEXT}{version}/infer", json=body)
        assert answer.status_code == 404
        assert answer.json() == {
            "error": "tensors are not accepted; send a text to generate or generate_stream"
        }
    answer = client.post("/v2/models/nothing/infer", content=b"\0")
    assert "no such model" in answer.json()["error"]


def test_curls_own_media_type_and_a_stream_that_is_named_are_taken(client: AppClient) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    content = json.dumps({"text_input": "a", "parameters": {"stream": False, "seed": 1}})
    answer = client.post(f"/v2/models/{TEXT}/generate", content=content, headers=form)
    assert answer.status_code == 200
    answer = client.post(f"/v2/models/{TEXT}/generate_stream", content=content, headers=form)
    assert answer.headers["content-type"].startswith("text/event-stream")


def test_errors_of_the_server_itself_are_in_the_protocols_form(client: AppClient) -> None:
    answer = client.post("/v2")
    assert answer.status_code == 405
    assert set(answer.json()) == {"error"}
