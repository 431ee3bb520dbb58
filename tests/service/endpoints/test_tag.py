"""`/tag` of real graphs: the likeliest taggings of the session's own numbers, in any company."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle.arrays import Float32Array
from service.bundle.labeler import FORBIDDEN, LabelerManifest
from service.bundle.text import BOS_ID, EOS_ID
from service.bundle.tokenization import Characters
from service.decoding.linear_chain import Chain, Labelings, labelings
from service.runtime.labeler import OnnxLabelerSession
from service.runtime.runs import pad_sources
from service.tasks.engine import TAG
from service.tasks.registry import ModelRegistry
from service.tasks.tag_spans import TagScheme
from tests.fakes import AppClient
from tests.labelers import LETTERS, Sort, labels_of

SORTS: list[Sort] = ["plain", "bio", "chain", "restore"]
VOCABULARY = Characters.of_characters(LETTERS)
Sessions = Mapping[str, OnnxLabelerSession]

texts = st.lists(st.text(st.sampled_from("abcde ß\u2603"), max_size=40), min_size=1, max_size=9)


def alone(sessions: Sessions, sort: str, text: str) -> Float32Array:
    """log P [T, L] of the labels of a text's characters, by the session."""
    tokens = np.array([BOS_ID, *VOCABULARY.encode(text), EOS_ID])
    lengths = np.array([len(tokens)], np.int32)
    found, _ = sessions[f"tiny-{sort}"].label(pad_sources([tokens]), lengths)
    places: Float32Array = found[0, 1 : len(tokens) - 1]
    return places


def expected(client: AppClient, sessions: Sessions, sort: Sort, text: str) -> Labelings:
    registry: ModelRegistry = client.app.state.registry
    manifest: Any = registry.engines[f"tiny-{sort}"].manifest
    assert isinstance(manifest, LabelerManifest)
    chain = None if manifest.chain is None else Chain.of(manifest.chain)
    return labelings(alone(sessions, sort, text), chain)


def tagging_told(sort: Sort, text: str, every: Labelings, place: int) -> dict[str, Any]:
    labels = labels_of(sort)
    scheme = TagScheme.of(labels)
    labeling = every.best(place + 1)[place]
    tags = []
    for start, end, kind in scheme.spans(labeling.labels):
        logprob = every.segment(start, labeling.labels[start:end])
        told = {"start": start, "end": end, "label": scheme.names[kind]}
        tags.append({**told, "probability": math.exp(logprob), "logprob": logprob})
    if labels.applied:
        restored = zip(labeling.labels.tolist(), text, strict=True)
        text = "".join(labels.names[label] or character for label, character in restored)
    return {"text": text, "logprob": labeling.logprob, "tags": tags}


@pytest.mark.parametrize("sort", SORTS)
@settings(max_examples=6, deadline=None)
@given(many=texts, n=st.integers(1, 4))
def test_tags_are_those_of_the_sessions_own_numbers_in_any_company(
    labelers: AppClient, label_sessions: Sessions, sort: Sort, many: list[str], n: int
) -> None:
    body = {"model": f"tiny-{sort}", "n": n}
    answer = labelers.ask("/tag", text=many, **body)
    assert answer["restored"] == (sort == "restore")
    for text, result in zip(many, answer["results"], strict=True):
        read = text.strip()
        every = expected(labelers, label_sessions, sort, read)
        found = [
            {name: tagging[name] for name in ("text", "logprob", "tags")}
            for tagging in (result, *result["alternatives"])
        ]
        assert len(found) == len(every.best(n))
        assert found == [tagging_told(sort, read, every, i) for i in range(len(found))]
        assert result["places"] is None
        assert result["unknown"] == [i for i, x in enumerate(read) if x == "\u2603"]
    assert answer["usage"]["prompt_tokens"] == sum(len(text.strip()) for text in many)
    assert [labelers.ask("/tag", text=x, **body)["results"][0] for x in many] == answer["results"]


@pytest.mark.parametrize("sort", SORTS)
def test_places_have_the_likeliest_labels_of_each_character(
    labelers: AppClient, label_sessions: Sessions, sort: Sort
) -> None:
    text, names = "abc de \u2603 cab", labels_of(sort).names
    asked = {"model": f"tiny-{sort}", "text": ["", text], "places": True, "top": 2}
    empty, result = labelers.ask("/tag", **asked)["results"]
    assert empty["places"] == []
    marginals = expected(labelers, label_sessions, sort, text).marginals
    assert [(x["start"], x["end"]) for x in result["places"]] == [
        (i, i + 1) for i in range(len(text))
    ]
    for place, row in zip(result["places"], marginals, strict=True):
        order = [i for i in np.argsort(-row, kind="stable")[:2] if row[i] > FORBIDDEN / 2]
        assert [x["label"] for x in place["labels"]] == [names[i] for i in order]
        assert [x["logprob"] for x in place["labels"]] == row[order].tolist()


def test_a_restored_text_has_the_letters_that_changed_as_tags(labelers: AppClient) -> None:
    text = "abc de cab aeiou"
    (result,) = labelers.ask("/tag", model="tiny-restore", text=text)["results"]
    assert len(result["text"]) == len(text)
    changed = [(i, x) for i, (x, y) in enumerate(zip(result["text"], text, strict=True)) if x != y]
    assert changed
    assert [(x["start"], x["label"]) for x in result["tags"]] == changed
    assert all(x["end"] == x["start"] + 1 for x in result["tags"])


@pytest.mark.parametrize("policy", ["unk", "error", "skip"])
def test_letters_that_come_with_an_accent_are_read_without_it_and_stay(
    labelers: AppClient, policy: str
) -> None:
    def ask(*texts: str, **body: Any) -> Any:
        asked = {"model": "tiny-restore", "places": True, "unknown": policy, **body}
        return labelers.ask("/tag", text=list(texts), **asked)["results"]

    bare, sent = ask("abc de cab aeiou", "abc de c\u00e1b aei\u00f3u")
    kept = (8, 14)
    assert sent["unknown"] == bare["unknown"] == []
    assert [sent["text"][i] for i in kept] == ["\u00e1", "\u00f3"]
    assert [x["labels"] for x in sent["places"] if x["start"] in kept] == [
        [{"label": x, "probability": 1.0, "logprob": 0.0}] for x in "\u00e1\u00f3"
    ]
    for field in ("tags", "places"):
        assert [x for x in sent[field] if x["start"] not in kept] == [
            x for x in bare[field] if x["start"] not in kept
        ]
    assert not [x for x in sent["tags"] if x["start"] in kept]
    # As two characters, too; and beside one that no label is.
    decomposed, odd = ask("aei\u00f3u", "aeio\u0301u\u2603", unknown="skip")
    assert odd["text"] == decomposed["text"]
    assert odd["unknown"] == [5]


def test_positions_are_in_the_text_of_the_answer(labelers: AppClient) -> None:
    def ask(text: str, **body: Any) -> Any:
        return labelers.ask("/tag", model="tiny-bio", text=text, **body)["results"][0]

    spaced = ask("  a\u2603bc \r\n", unknown="skip")
    assert spaced["text"] == "abc"
    assert spaced["unknown"] == [1]
    assert spaced["tags"] == ask("abc")["tags"]


@pytest.mark.parametrize(
    ("body", "pointer", "words"),
    [
        ({"n": 17}, "/n", "at most 16"),
        ({"n": 0}, "/n", "greater"),
        ({"top": 2}, "", "needs places"),
        ({"places": True, "top": 21}, "/top", "less"),
        ({"text": "a" * 201}, "/text", "200"),
        ({"text": ["a" * 200] * 601}, "/text", "details"),
        ({"text": ["a" * 200] * 1024, "n": 16, "model": "tiny-chain"}, "/text", "details"),
        ({"model": "tiny-text"}, "/model", "it answers /classify"),
        ({"unknown": "error", "text": "\u2603"}, "/text", "vocabulary"),
        ({"steps": True}, "", "known fields"),
    ],
)
def test_what_cannot_be_is_refused_with_its_field(
    labelers: AppClient, body: dict[str, Any], pointer: str, words: str
) -> None:
    answer = labelers.post("/tag", json={"model": "tiny-bio", "text": "a", **body})
    assert answer.status_code == 422
    problem = answer.json()
    assert problem["errors"][0]["pointer"] == pointer
    assert words in problem["detail"]


def test_the_ability_is_of_labels_of_characters(labelers: AppClient) -> None:
    registry: ModelRegistry = labelers.app.state.registry
    tags = {name for name, engine in registry.engines.items() if TAG.of(engine) is not None}
    assert tags == {f"tiny-{sort}" for sort in SORTS}
