"""`/infill` under llama.cpp's names, as llama.vim and llama.vscode send them."""

import json
from typing import Any

import pytest

from tests.fakes import AppClient
from tests.service.events import parsed

MODEL = "tiny-lstm"
# What llama.vim sends besides its texts.
EDITOR: dict[str, Any] = {
    "model": MODEL,
    "n_predict": 3,
    "stop": [],
    "n_indent": 0,
    "top_k": 40,
    "top_p": 0.9,
    "stream": False,
    "samplers": ["top_k", "top_p", "infill"],
    "cache_prompt": True,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 250,
    "response_fields": ["content", "timings/prompt_n", "truncated", "tokens_cached"],
}
NAMES = {"input_prefix": "the ", "prompt": "c", "input_suffix": " sat"}


def likeliest(client: AppClient, prefix: str) -> str:
    body = {"prefix": prefix, "suffix": " sat", "max_tokens": 3, "seed": 5}
    text: str = client.ask("/infill", model=MODEL, **body)["results"][0]["fills"][0]["text"]
    return text


def test_an_editor_gets_the_likeliest_fill(both_kinds: AppClient) -> None:
    answer = both_kinds.ask("/infill", **EDITOR, **NAMES, seed=5)
    assert answer["content"] == likeliest(both_kinds, "the c")
    assert (answer["stop"], answer["stop_type"], answer["truncated"]) == (True, "eos", False)
    assert answer["model"] == MODEL
    assert answer["tokens_evaluated"] > 0
    extra = [{"filename": "x.txt", "text": "a hat\n", "time": 3}, {"text": "so "}]
    answer = both_kinds.ask("/infill", **EDITOR, **NAMES, seed=5, input_extra=extra)
    assert answer["content"] == likeliest(both_kinds, "a hat\nso the c")


def test_a_request_for_no_text_is_answered_at_once(both_kinds: AppClient) -> None:
    """llama.vim sends it ahead of time, so that its other files are read."""
    texts = dict.fromkeys(NAMES, "")
    body = {**EDITOR, **texts, "n_predict": 0, "samplers": [], "temperature": 0.0}
    answer = both_kinds.ask("/infill", **body)
    assert (answer["content"], answer["stop_type"], answer["tokens_predicted"]) == ("", "limit", 0)


def test_a_temperature_draws_and_a_seed_repeats_it(both_kinds: AppClient) -> None:
    options = {**EDITOR, **NAMES, "temperature": 2.0, "top_k": -1, "top_p": 1.0, "n_predict": -1}
    drawn = [both_kinds.ask("/infill", **options, seed=x)["content"] for x in (1, 2, 3, 1, -1)]
    assert drawn[0] == drawn[3]
    assert len(set(drawn[:3])) > 1


def test_a_stop_string_is_in_no_fill(both_kinds: AppClient) -> None:
    first = likeliest(both_kinds, "the c")
    body = {**EDITOR, **NAMES, "seed": 5, "stop": [first[0], ""]}
    answer = both_kinds.ask("/infill", **body)
    assert first[0] not in answer["content"]
    assert answer["stopping_word"] == ""


def test_a_stream_has_the_fill_and_its_end(both_kinds: AppClient) -> None:
    whole = both_kinds.ask("/infill", **EDITOR, **NAMES, seed=5)
    body = {**EDITOR, **NAMES, "seed": 5, "stream": True}
    answer = both_kinds.post("/infill", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    piece, end = (json.loads(event.data) for event in parsed(answer.content))
    assert piece == {"content": whole["content"], "tokens": [], "stop": False}
    cached = {"tokens_cached": end["tokens_cached"]}
    assert end == {**whole, "content": "", **cached}


@pytest.mark.parametrize(
    ("pointer", "body"),
    [
        ("/n_predict", {"n_predict": 5000}),
        ("/n_predict", {"n_predict": -2}),
        ("/n_cmpl", {"n_cmpl": 2}),
        ("/logit_bias", {"logit_bias": [[5, 1.0]]}),
        ("/frequency_penalty", {"frequency_penalty": 0.5}),
        ("/grammar", {"grammar": "root ::= a"}),
        ("/n_probs", {"n_probs": 3}),
        ("/input_extra/0/text", {"input_extra": [{"filename": "a"}]}),
        ("/stop", {"stop": ["a" * 300]}),
        ("/model", {"model": "tiny-pairs"}),
        ("/input_prefix", {"input_prefix": 7}),
        ("/candidates", {"candidates": ["a"]}),
        ("/pattern", {"pattern": "a"}),
        ("/text", {"text": "a___b"}),
        ("/rescore", {"rescore": MODEL}),
    ],
)
def test_what_would_change_the_answer_is_refused(
    both_kinds: AppClient, pointer: str, body: dict[str, Any]
) -> None:
    answer = both_kinds.post("/infill", json={**EDITOR, **NAMES, **body})
    assert answer.status_code == 422, answer.text
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]


def test_a_text_that_holds_such_a_name_is_a_text(both_kinds: AppClient) -> None:
    body = {"model": MODEL, "candidates": ["input_prefix"], "suffix": '{"input_prefix": 1}'}
    answer = both_kinds.ask("/infill", **body)
    assert answer["results"][0]["fills"][0]["text"] == "input_prefix"
    mixed = both_kinds.post("/infill", json={"input_prefix": "a", "suffix": "b", "model": MODEL})
    assert mixed.status_code == 422
    for broken, status in ((b'{"input_prefix": "a"', 400), (b'["input_prefix"]', 422)):
        headers = {"Content-Type": "application/json"}
        answer = both_kinds.post("/infill", content=broken, headers=headers)
        assert answer.status_code == status
