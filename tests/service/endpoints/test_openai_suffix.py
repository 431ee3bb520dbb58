"""`suffix` of /v1/completions. The real package is in tests/clients."""

import json
from pathlib import Path
from typing import Any

import pytest

from service.app import create_app
from service.bundle.store import write_bundle
from service.bundle.text import BOS_ID, SPECIAL_TOKENS
from service.settings import Settings
from tests.bundles import tiny_cloze_files, tiny_files
from tests.fakes import AppClient
from tests.service.events import parsed

AROUND = {"model": "tiny-lstm", "prompt": "the c", "suffix": " sat", "max_tokens": 3, "seed": 5}


def insert(client: AppClient, **body: Any) -> Any:
    answer = client.post("/v1/completions", json={**AROUND, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def fills(client: AppClient, prefix: str, **body: Any) -> list[str]:
    around = {"prefix": prefix, "suffix": " sat", "max_tokens": 3, "seed": 5, "num_fills": 100}
    answer = client.ask("/infill", model="tiny-lstm", **{**around, **body})
    return [fill["text"] for fill in answer["results"][0]["fills"]]


def test_temperature_0_gives_the_likeliest_fills_of_every_prompt(both_kinds: AppClient) -> None:
    answer = insert(both_kinds, prompt=["the c", "a h"], temperature=0, n=2)
    wanted = [text for prefix in ("the c", "a h") for text in fills(both_kinds, prefix)[:2]]
    assert [choice["text"] for choice in answer["choices"]] == wanted
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"stop"}
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_a_printed_bos_is_the_one_that_every_text_has(both_kinds: AppClient) -> None:
    plain = insert(both_kinds, temperature=0)["choices"]
    bos = SPECIAL_TOKENS[BOS_ID]
    assert insert(both_kinds, prompt=f"{bos}the c", temperature=0)["choices"] == plain
    assert (
        insert(both_kinds, prompt=None, temperature=0)["choices"][0]["text"]
        == (fills(both_kinds, "")[0])
    )


def test_draws_are_among_what_was_compared_and_a_seed_repeats_them(both_kinds: AppClient) -> None:
    drawn = insert(both_kinds, n=16)["choices"]
    found = {choice["text"] for choice in drawn}
    assert len(found) > 1
    assert found <= set(fills(both_kinds, "the c"))
    assert insert(both_kinds, n=16, temperature=1.0, top_p=1.0)["choices"] == drawn
    assert insert(both_kinds, n=16, seed=6)["choices"] != drawn
    assert {x["text"] for x in insert(both_kinds, n=16, top_k=1)["choices"]} == {
        fills(both_kinds, "the c")[0]
    }


def test_without_a_name_the_only_language_model_answers(tmp_path: Path) -> None:
    write_bundle(tmp_path, *tiny_files("lstm"))
    write_bundle(tmp_path, *tiny_cloze_files())
    body = {"prompt": "ab", "suffix": "c", "seed": 1, "max_tokens": 2, "temperature": 0}
    llama = {"input_prefix": "ab", "input_suffix": "c", "seed": 1, "n_predict": 2}
    with AppClient(create_app(Settings(models_dir=tmp_path, engine_threads=1))) as client:
        unnamed = client.ask("/v1/completions", **body)
        assert unnamed["model"] == client.ask("/infill", **llama)["model"] == "tiny-lstm"
        # A model for blanks does so by its name, and its weights have a name as well.
        named = client.ask("/v1/completions", **body, model="tiny-cloze")
        found = client.ask("/infill", **llama, model="tiny-cloze")
        assert (named["model"], named["choices"][0]["text"]) == ("tiny-cloze", found["content"])
        assert named["system_fingerprint"].count("-") == 2


def test_a_stream_has_each_fill_in_one_event(both_kinds: AppClient) -> None:
    whole = insert(both_kinds, n=3)
    body = {**AROUND, "n": 3, "stream": True, "stream_options": {"include_usage": True}}
    *events, last = parsed(both_kinds.post("/v1/completions", json=body).content)
    assert last.data == "[DONE]"
    chunks = [json.loads(event.data) for event in events]
    pieces = [chunk["choices"][0] for chunk in chunks[:-1]]
    told = [(x["index"], x["text"], x["finish_reason"]) for x in pieces]
    assert told == [
        (choice["index"], *rest)
        for choice in whole["choices"]
        for rest in ((choice["text"], None), ("", "stop"))
    ]
    assert chunks[-1]["usage"] == whole["usage"]
    assert len({chunk["id"] for chunk in chunks}) == 1


@pytest.mark.parametrize(
    ("param", "words", "body"),
    [
        ("logprobs", "/infill has the log-probabilities", {"logprobs": 0}),
        ("echo", "not together with suffix", {"echo": True}),
        ("logit_bias", "not together with suffix", {"logit_bias": {"5": 1.0}}),
        ("presence_penalty", "not together with suffix", {"presence_penalty": 0.5}),
        ("min_tokens", "not together with suffix", {"min_tokens": 3}),
        ("adapt", "not together with suffix", {"adapt": True}),
        ("best_of", "must equal n", {"best_of": 2}),
        ("prompt", "a text or a list of texts", {"prompt": [5, 6]}),
        ("prompt", "a text or a list of texts", {"prompt": [[5, 6]]}),
        ("prompt", "at most 1024 are allowed", {"prompt": ["a"] * 1025}),
        ("max_tokens", "1 or more", {"max_tokens": 0}),
        ("max_tokens", "at most 1000", {"max_tokens": 5000}),
        ("n", "at most 16 are allowed", {"n": 17}),
        ("stop", "stop strings; at most", {"stop": ["a"] * 20}),
        ("suffix", "valid string", {"suffix": ["a"]}),
        ("stream_options", "only with stream", {"stream_options": {"include_usage": True}}),
        ("guided_regex", "/generate has `pattern`", {"guided_regex": "a+"}),
        ("model", "does not fill blanks", {"model": "tiny-pairs"}),
    ],
)
def test_what_says_nothing_about_a_fill_is_refused(
    both_kinds: AppClient, param: str, words: str, body: dict[str, Any]
) -> None:
    answer = both_kinds.post("/v1/completions", json={**AROUND, **body})
    assert answer.status_code == 422
    found = answer.json()["error"]
    assert found["param"] == param
    assert words in found["message"]


def test_an_error_of_a_stream_has_its_status(both_kinds: AppClient) -> None:
    body = {**AROUND, "max_tokens": 5000, "stream": True}
    answer = both_kinds.post("/v1/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "max_tokens")


def test_an_empty_suffix_is_none(both_kinds: AppClient) -> None:
    plain = insert(both_kinds, suffix=None, logprobs=1, echo=True)
    assert insert(both_kinds, suffix="", logprobs=1, echo=True)["choices"] == plain["choices"]
