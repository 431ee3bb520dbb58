"""`/classify`, and `/score` with a label, of real graphs: the session's own numbers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle.arrays import Float32Array
from service.bundle.text import BOS_ID, EOS_ID
from service.bundle.tokenization import Characters
from service.runtime.labeler import OnnxLabelerSession
from service.runtime.runs import pad_sources
from tests.fakes import AppClient
from tests.labelers import LETTERS, labels_of

MODELS = {"tiny-text": "text", "tiny-several": "several", "tiny-forward": "forward"}
VOCABULARY = Characters.of_characters(LETTERS)
Sessions = Mapping[str, OnnxLabelerSession]

texts = st.lists(st.text(st.sampled_from("abcde ß\u2603"), max_size=40), min_size=1, max_size=9)
models = st.sampled_from(sorted(MODELS))
several = settings(max_examples=12, deadline=None)


def names_of(model: str) -> list[str]:
    return labels_of(MODELS[model]).names  # type: ignore[arg-type]


def alone(sessions: Sessions, model: str, text: str) -> Float32Array:
    """log P [L] of a text's labels, by the session."""
    session = sessions[model]
    ids = VOCABULARY.encode(text)
    tokens = np.array([BOS_ID, *ids, *([] if session.reads_forward else [EOS_ID])])
    padded = tokens[None] if session.reads_forward else pad_sources([tokens])
    lengths = np.array([len(tokens)], np.int32)
    found, _ = session.label(padded.astype(np.int64), lengths, session.initial_states(1))
    logprobs: Float32Array = found[0, len(tokens) - 1] if session.labels_places else found[0]
    return logprobs


def labels_told(logprobs: Float32Array, names: Sequence[str]) -> list[dict[str, Any]]:
    order = sorted(range(len(names)), key=lambda i: -float(logprobs[i]))
    return [
        {
            "label": names[i],
            "probability": pytest.approx(math.exp(logprobs[i]), rel=1e-15),
            "logprob": float(logprobs[i]),
        }
        for i in order
    ]


def stripped(model: str, text: str) -> str:
    return text if model == "tiny-forward" else text.strip()


@several
@given(model=models, many=texts)
def test_labels_are_the_sessions_own_numbers_in_any_company(
    labelers: AppClient, label_sessions: Sessions, model: str, many: list[str]
) -> None:
    answer = labelers.ask("/classify", model=model, text=many)
    for text, result in zip(many, answer["results"], strict=True):
        read = stripped(model, text)
        logprobs = alone(label_sessions, model, read)
        assert result["labels"] == labels_told(logprobs, names_of(model))
        assert result["unknown"] == [i for i, x in enumerate(read) if x == "\u2603"]
        assert result["unknown_chars"] == len(result["unknown"])
        assert (result["steps"], result["state"]) == (None, None)
    read_chars = sum(len(stripped(model, text)) for text in many)
    assert answer["usage"]["prompt_tokens"] == read_chars
    alone_told = [labelers.ask("/classify", model=model, text=x)["results"][0] for x in many]
    assert alone_told == answer["results"]


@several
@given(model=models, many=texts, data=st.data())
def test_score_with_a_label_is_the_same_number(
    labelers: AppClient, model: str, many: list[str], data: st.DataObject
) -> None:
    names = st.sampled_from(names_of(model))
    labels = data.draw(st.lists(names, min_size=len(many), max_size=len(many)))
    found = labelers.ask("/classify", model=model, text=many)["results"]
    scored = labelers.ask("/score", model=model, text=many, label=labels)["results"]
    for label, classified, score in zip(labels, found, scored, strict=True):
        (wanted,) = [x["logprob"] for x in classified["labels"] if x["label"] == label]
        assert score["logprob"] == wanted
        assert score["bits"] == pytest.approx(-wanted / math.log(2))
        assert (score["chars"], score["bits_per_char"], score["eos"]) == (0, None, False)
        assert score["unknown"] == classified["unknown"]
    one = labelers.ask("/score", model=model, text=many[0], label=labels[0])["results"]
    assert one == scored[:1]


@several
@given(text=st.text(st.sampled_from("abcde ß"), max_size=150), cuts=st.sets(st.integers(0, 150)))
def test_parts_that_go_on_from_a_state_give_what_the_whole_text_gives(
    labelers: AppClient, text: str, cuts: set[int]
) -> None:
    def ask(**body: Any) -> Any:
        return labelers.ask("/classify", model="tiny-forward", **body)["results"][0]

    whole = ask(text=text, steps=True, return_state=True)
    assert [x["chars"] for x in whole["steps"]] == list(range(1, len(text) + 1))
    if text:
        best = whole["labels"][0]
        assert {**best, "chars": len(text)} == whole["steps"][-1]
    state, steps, read = None, [], 0
    for place in [*sorted(x for x in cuts if x < len(text)), len(text)]:
        part = ask(text=text[read:place], state=state, steps=True, return_state=True)
        steps += [{**x, "chars": x["chars"] + read} for x in part["steps"]]
        state, read = part["state"], place
        prefix = ask(text=text[:place])
        assert part["labels"] == prefix["labels"]
    assert steps == whole["steps"]
    assert part["labels"] == whole["labels"]


def test_top_and_min_probability_leave_labels_out(labelers: AppClient) -> None:
    def ask(**body: Any) -> list[Any]:
        body = {"model": "tiny-several", "text": "abc", **body}
        labels: list[Any] = labelers.ask("/classify", **body)["results"][0]["labels"]
        return labels

    every = ask()
    assert len(every) == 4
    assert [x["probability"] for x in every] == sorted(x["probability"] for x in every)[::-1]
    assert ask(top=2) == every[:2]
    assert ask(top=99) == every
    least = every[1]["probability"]
    assert ask(min_probability=least) == every[:2]
    assert ask(min_probability=1.0) == []


def test_the_policy_for_unknown_characters(labelers: AppClient) -> None:
    def ask(text: str, **body: Any) -> Any:
        return labelers.ask("/classify", model="tiny-text", text=text, **body)["results"][0]

    skipped = ask("a\u2603 b", unknown="skip")
    assert skipped["labels"] == ask("a b")["labels"]
    assert skipped["unknown"] == [1]
    assert skipped["labels"] != ask("a\u2603 b")["labels"]
    body = {"model": "tiny-text", "text": ["a", "a\u2603"], "unknown": "error"}
    refused = labelers.post("/classify", json=body)
    assert refused.status_code == 422
    assert "at positions 1 of" in refused.json()["detail"]


LISTED = "its labels are de, en, fr"


@pytest.mark.parametrize(
    ("path", "body", "pointer", "words"),
    [
        ("/classify", {"model": "tiny-text", "steps": True}, "/steps", "read forward"),
        ("/classify", {"model": "tiny-text", "return_state": True}, "/return_state", "forward"),
        ("/classify", {"model": "tiny-text", "state": "AAAA"}, "/state", "forward"),
        ("/classify", {"model": "tiny-forward", "state": "AAAA"}, "/state", "not a valid state"),
        ("/classify", {"model": "tiny-text", "text": []}, "/text", "at least one"),
        ("/classify", {"model": "tiny-text", "text": "a" * 201}, "/text", "200"),
        ("/classify", {"model": "tiny-text", "text": "a" * 20_000}, "/text", "characters"),
        ("/classify", {"model": "tiny-text", "top": 0}, "/top", "greater"),
        ("/classify", {"model": "tiny-text", "min_probability": 1.5}, "/min_probability", "less"),
        ("/classify", {"model": "tiny-text", "labels": 3}, "", "known fields are"),
        ("/classify", {"model": "tiny-lstm"}, "/model", "it answers /generate, /score and /infill"),
        ("/classify", {"model": "tiny-bio"}, "/model", "it answers /tag"),
        ("/classify", {}, "/model", "tiny-forward, tiny-several, tiny-text"),
        ("/score", {"model": "tiny-text"}, "/model", "/classify and /score with `label`"),
        ("/score", {"model": "tiny-text", "label": "xx"}, "/label", LISTED),
        ("/score", {"model": "tiny-text", "label": ["de", "en"]}, "", "one for each text"),
        ("/score", {"model": "tiny-text", "label": "de", "context": "b"}, "", "with label"),
        ("/score", {"model": "tiny-text", "label": "de", "source": "b"}, "", "with label"),
        ("/score", {"model": "tiny-text", "label": "de", "tokens": True}, "/tokens", "with label"),
        ("/score", {"model": "tiny-text", "label": "de", "eos": True}, "/eos", "with label"),
        ("/score", {"model": "tiny-text", "label": "de", "state": "A"}, "/state", "with label"),
        ("/score", {"model": "tiny-lstm", "label": "de"}, "/model", "does not score labels"),
        ("/score", {"model": "tiny-bio", "label": "O"}, "/model", "does not score labels"),
    ],
)
def test_what_cannot_be_is_refused_with_its_field(
    labelers: AppClient, path: str, body: dict[str, Any], pointer: str, words: str
) -> None:
    answer = labelers.post(path, json={"text": "a", **body})
    assert answer.status_code == 422
    problem = answer.json()
    assert problem["errors"][0]["pointer"] == pointer
    assert words in problem["detail"]


def test_a_state_of_another_model_is_refused(labelers: AppClient) -> None:
    (made,) = labelers.ask("/score", model="tiny-lstm", text="a", return_state=True)["results"]
    own = {"model": "tiny-forward", "text": "a", "return_state": True}
    (found,) = labelers.ask("/classify", **own)["results"]
    for path, model, state in (
        ("/classify", "tiny-forward", made["state"]),
        ("/score", "tiny-lstm", found["state"]),
    ):
        answer = labelers.post(path, json={"model": model, "text": "a", "state": state})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == "/state"


def test_query_parameters_are_of_streams(labelers: AppClient) -> None:
    for path in ("/classify", "/tag"):
        answer = labelers.post(path, params={"top": 1}, json={"text": "a"})
        assert answer.status_code == 422
        assert "streamed bodies" in answer.json()["detail"]


def test_what_is_read_is_counted(labelers: AppClient) -> None:
    def counted() -> float:
        for line in labelers.get("/metrics").text.splitlines():
            if line.startswith('unroll_tokens_total{kind="prompt",model="tiny-text"}'):
                return float(line.split()[-1])
        return 0.0

    before = counted()
    labelers.ask("/classify", model="tiny-text", text=["abc", "", " de "])
    assert counted() - before == 5
