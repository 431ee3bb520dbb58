"""`POST /infill` of language models."""

import math
from typing import Any

import numpy as np
import pytest

from tests.fakes import AppClient

CANDIDATES = ["white", "whjte", "", "caf\u00e9", "w"]
PREFIX, SUFFIX = "the ", " rabbit"


def infill(client: AppClient, **body: Any) -> Any:
    return client.ask("/infill", model="tiny-lstm", **body)


def errors_of(client: AppClient, **body: Any) -> list[str]:
    response = client.post("/infill", json={"model": "tiny-lstm", **body})
    assert response.status_code == 422, response.text
    return [error["pointer"] for error in response.json()["errors"]]


def test_fills_are_ranked_by_what_score_says_of_them(both_kinds: AppClient) -> None:
    answer = infill(
        both_kinds, prefix=PREFIX, suffix=SUFFIX, candidates=CANDIDATES, num_fills=9, eos=True
    )
    assert answer["rescore"] is None
    (result,) = answer["results"]
    contexts = [PREFIX] * len(CANDIDATES)
    asked: dict[str, Any] = {"model": "tiny-lstm"}
    one = both_kinds.ask("/score", text=CANDIDATES, context=contexts, **asked)["results"]
    after = both_kinds.ask(
        "/score",
        text=[SUFFIX] * len(CANDIDATES),
        context=[PREFIX + x for x in CANDIDATES],
        eos=True,
        **asked,
    )["results"]
    known = {
        text: (x["logprob"], y["logprob"])
        for text, x, y in zip(CANDIDATES, one, after, strict=True)
    }
    assert {x["text"]: (x["logprob"], x["suffix_logprob"]) for x in result["fills"]} == known
    total = np.logaddexp.reduce([sum(x) for x in known.values()])
    for fill in result["fills"]:
        assert fill["texts"] == [fill["text"]]
        expected = math.exp(sum(known[fill["text"]]) - total)
        assert fill["posterior"] == pytest.approx(expected)
    assert result["compared"] == len(CANDIDATES)
    assert (result["found_mass"], result["seed"]) == (None, None)
    assert answer["usage"]["prompt_tokens"] == 4 + sum(len(x) + 7 for x in CANDIDATES)
    assert answer["usage"]["completion_tokens"] == 0


def test_one_and_several_texts_with_prefix_and_suffix_or_blanks(both_kinds: AppClient) -> None:
    options: dict[str, Any] = {"length": 2, "seed": 5, "num_proposals": 4}
    (one,) = infill(both_kinds, prefix="a cat", suffix="in", **options)["results"]
    two = infill(both_kinds, prefix=["a cat", "a hat"], suffix="in", **options)["results"]
    marked = infill(both_kinds, text=["a cat___in", "a hat___in"], **options)["results"]
    assert two == marked
    assert two[0]["fills"] == one["fills"]
    assert one["seed"] == 5
    assert 0.0 < one["found_mass"] < 1.0
    (only,) = infill(both_kinds, suffix="in", **options)["results"]
    assert {len(fill["text"]) for fill in only["fills"]} == {2}
    (several,) = infill(both_kinds, text="a<>at in<>a hat", blank="<>", **options)["results"]
    assert {len(fill["texts"]) for fill in several["fills"]} == {2}
    assert {fill["text"] for fill in several["fills"]} == {None}


def test_choices_are_candidates_and_a_pattern_holds(both_kinds: AppClient) -> None:
    asked: dict[str, Any] = {"prefix": "a ", "suffix": "at"}
    candidates = infill(both_kinds, candidates=["c", "h"], **asked)["results"]
    assert infill(both_kinds, choices=["c", "h"], **asked)["results"] == candidates
    (result,) = infill(both_kinds, pattern="[ch]|be?", **asked)["results"]
    assert {x["text"] for x in result["fills"]} == {"c", "h", "b", "be"}
    (result,) = infill(both_kinds, allowed_chars="ab", length=3, **asked)["results"]
    assert result["compared"] == 8
    assert {x for fill in result["fills"] for x in fill["text"]} <= {"a", "b"}


@pytest.mark.parametrize(
    ("pointers", "body"),
    [
        ([""], {}),
        ([""], {"prefix": "a", "text": "a___"}),
        ([""], {"prefix": ["a", "b"], "suffix": ["a", "b", "c"]}),
        ([""], {"text": ["a___", "no blank"]}),
        ([""], {"prefix": "a", "candidates": ["a"], "choices": ["b"]}),
        ([""], {"prefix": "a", "candidates": ["a"], "pattern": "b"}),
        ([""], {"prefix": "a", "candidates": ["a"], "length": 1}),
        ([""], {"prefix": "a", "candidates": ["a"], "rescore": "tiny-lstm"}),
        (["/candidates"], {"prefix": "a", "candidates": []}),
        (["/stream"], {"prefix": "a", "stream": True}),
        (["/prefix"], {"prefix": []}),
        (["/blank"], {"text": "a", "blank": ""}),
        (["/length"], {"prefix": "a", "length": 5000}),
        (["/max_tokens"], {"prefix": "a", "max_tokens": 5000}),
        (["/pattern"], {"prefix": "a", "pattern": "("}),
        (["/bos"], {"prefix": "", "suffix": "a", "bos": False}),
        (["/prefix"], {"prefix": "\u4e00", "suffix": "a", "unknown": "error"}),
        (["/suffix"], {"prefix": "a", "suffix": "\u4e00", "unknown": "error"}),
        (["/text"], {"text": "a___\u4e00", "unknown": "error"}),
        (["/choices"], {"prefix": "a", "choices": ["\u4e00"], "unknown": "error"}),
        (["/choices"], {"prefix": "a", "choices": ["a"] * 1025}),
        (["/model"], {"prefix": "a", "model": "tiny-pairs"}),
        (["/model"], {"prefix": "a", "rescore": "tiny-lstm"}),
    ],
)
def test_a_mistake_is_named(
    both_kinds: AppClient, pointers: list[str], body: dict[str, Any]
) -> None:
    assert errors_of(both_kinds, **body) == pointers


def test_the_only_model_that_fills_blanks_needs_no_name(both_kinds: AppClient) -> None:
    answer = both_kinds.ask("/infill", prefix="a", suffix="b", candidates=["c"])
    assert answer["model"] == "tiny-lstm"
