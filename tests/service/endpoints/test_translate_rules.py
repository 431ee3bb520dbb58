"""Rules for the targets of `/translate`: every target obeys, and nobody else sees a difference."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.app import create_app
from service.decoding.constraints import Pattern, compile_rule
from service.decoding.spelling import Writing
from service.runtime.encoder_decoder import OnnxEncoderDecoderSession
from service.settings import Settings
from service.tasks.encoder_decoder import EncoderDecoderEngine
from service.tasks.searches import Searches
from service.tasks.sides import Sides
from service.tasks.translate_limits import checked_options
from service.tasks.translations import TranslateOptions
from tests.bundles import encoder_decoder_in_memory, tiny_encoder_decoder_files
from tests.fakes import AppClient
from tests.service.events import parsed

SETTINGS = Settings(max_choices=8, max_pattern_states=300)
SOURCES = ["a", "a cat in a hat", "rabbit, rabbit!"]
# Of each model: a rule, and what it means.
RULES: list[tuple[str, dict[str, Any], str]] = [
    ("letters", {"pattern": "[a-t ]{2,9}e"}, "[a-t ]{2,9}e"),
    ("letters", {"allowed_chars": "aeht "}, "[aeht ]*"),
    ("letters", {"allowed_chars": ["a", "e"], "must_contain": "ea"}, "[ae]*ea[ae]*"),
    ("letters", {"must_contain": ["cat", "ate"]}, ".*(cat.*ate|ate.*cat|cate).*"),
    ("symbols", {"pattern": "(AA|B)( (AA|B|S))*"}, "(AA|B)( (AA|B|S))*"),
    ("symbols", {"allowed_chars": ["AA", "+"]}, r"((AA|\+)( (AA|\+))*)?"),
    ("symbols", {"must_contain": ["AA B", "T"]}, "(?=(.* )?AA B( .*)?$)(?=(.* )?T( .*)?$).*"),
    ("subwords", {"pattern": "the [a-z ]{3,12}"}, "the [a-z ]{3,12}"),
    ("subwords", {"must_contain": ["hat", "cat"], "allowed_chars": "aceht "}, "(?=.*hat).*cat.*"),
]


@pytest.fixture(scope="module")
def client() -> Iterator[AppClient]:
    """A model of each kind of token."""
    files = [
        tiny_encoder_decoder_files("lstm", name="letters", input_feeding=True),
        tiny_encoder_decoder_files("gru", name="symbols", tokenization="whitespace"),
        tiny_encoder_decoder_files("rnn", name="subwords", tokenization="bpe", attention="none"),
    ]
    engines = []
    for parts in files:
        made = encoder_decoder_in_memory(*parts)
        session = OnnxEncoderDecoderSession(made, "fp32")
        engines.append(EncoderDecoderEngine(made, session, SETTINGS, precision="fp32", threads=2))
    with AppClient(create_app(SETTINGS, engines)) as running:
        yield running


def source_of(model: str, text: str) -> str:
    return "AA B EH" if model == "symbols" else text


def hypotheses(client: AppClient, model: str, source: str, **options: Any) -> list[Any]:
    (result,) = client.ask("/translate", model=model, source=source, **options)["results"]
    found: list[Any] = result["hypotheses"]
    return found


several = settings(max_examples=20, deadline=None)
words = {
    "letters": st.text("aehtc ", max_size=5).map(str.strip),
    "symbols": st.lists(st.sampled_from(["AA", "AH", "B", "+"]), max_size=4).map(" ".join),
}


@pytest.mark.parametrize("model", words)
@several
@given(data=st.data())
def test_the_best_choice_is_the_one_that_score_ranks_best(
    client: AppClient, model: str, data: st.DataObject
) -> None:
    """With as many beams as choices nothing is lost, whatever is likelier on the way."""
    choices = data.draw(st.lists(words[model], min_size=2, max_size=6, unique=True))
    penalty = data.draw(st.sampled_from([0.0, 0.7, 1.0, 2.0]))
    source = source_of(model, data.draw(st.sampled_from(SOURCES)))
    count = len(choices)
    found = hypotheses(
        client,
        model,
        source,
        choices=choices,
        beam_size=count,
        num_hypotheses=count,
        length_penalty=penalty,
        tokens=True,
    )
    scored = client.ask("/score", model=model, text=choices, source=source)["results"]
    logprobs = {x: score["logprob"] for x, score in zip(choices, scored, strict=True)}
    assert {x["text"]: x["logprob"] for x in found} == logprobs
    lengths = {x["text"]: len(x["tokens"]) for x in found}
    scores = [logprobs[x["text"]] / lengths[x["text"]] ** penalty for x in found]
    assert scores == sorted(scores, reverse=True)
    (best,) = hypotheses(
        client, model, source, choices=choices, beam_size=count, length_penalty=penalty
    )
    assert best["logprob"] == found[0]["logprob"]


@pytest.mark.parametrize(("model", "rule", "meaning"), RULES)
@pytest.mark.parametrize(
    "how", [{}, {"beam_size": 1}, {"temperature": 1.0, "num_hypotheses": 3, "seed": 4}]
)
def test_every_hypothesis_obeys_and_says_so_streamed_or_not(
    client: AppClient, model: str, rule: dict[str, Any], meaning: str, how: dict[str, Any]
) -> None:
    body = {"model": model, "source": [source_of(model, x) for x in SOURCES[1:]], **rule, **how}
    answer = client.ask("/translate", **body)
    for result in answer["results"]:
        for found in result["hypotheses"]:
            assert re.fullmatch(meaning, found["text"])
            assert (found["finish_reason"], found["matched"]) == ("stop", True)
    *tokens, done = parsed(client.post("/translate", json={**body, "stream": True}).content)
    assert json.loads(done.data) == answer
    for i, result in enumerate(answer["results"]):
        told = [json.loads(x.data) for x in tokens]
        streamed = "".join(x["text"] for x in told if (x["index"], x["hypothesis"]) == (i, 0))
        assert streamed == result["hypotheses"][0]["text"]


def test_log_probabilities_are_the_models_own(client: AppClient) -> None:
    """Masked, not conditioned: those of `/score`."""
    (found,) = hypotheses(client, "letters", "a cat", pattern="t[ae]+", max_tokens=5)
    (scored,) = client.ask("/score", model="letters", text=found["text"], source="a cat")["results"]
    assert found["logprob"] == scored["logprob"]


@settings(max_examples=10, deadline=None)
@given(
    chosen=st.lists(
        st.tuples(
            st.sampled_from([*(rule for model, rule, _ in RULES if model == "letters"), {}]),
            st.sampled_from(SOURCES),
            st.sampled_from([3, 3, 5]),
        ),
        min_size=2,
        max_size=5,
    )
)
def test_requests_beside_others_get_the_answers_that_they_get_alone(
    client: AppClient, chosen: list[tuple[dict[str, Any], str, int]]
) -> None:
    bodies = [
        {
            "model": "letters",
            "source": source,
            "beam_size": width,
            "num_hypotheses": width,
            "tokens": True,
            "return_alignments": True,
            **rule,
        }
        for rule, source, width in chosen
    ]
    alone = [client.ask("/translate", **body) for body in bodies]
    assert [x.json() for x in client.together("/translate", bodies)] == alone


def test_a_prefix_is_part_of_the_target(client: AppClient) -> None:
    options = {"pattern": "the [a-h]{3}", "target_prefix": "the a"}
    (found,) = hypotheses(client, "letters", "a cat", **options)
    assert re.fullmatch("the a[a-h]{2}", found["text"])
    (found,) = hypotheses(client, "letters", "a cat", choices=["at", "hat"], target_prefix="hat")
    assert found["text"] == "hat"


def test_the_empty_target_of_a_blank_source_says_whether_it_obeys(client: AppClient) -> None:
    (found,) = hypotheses(client, "letters", " ", choices=["a", "at"])
    assert (found["text"], found["matched"]) == ("", False)
    (found,) = hypotheses(client, "letters", " ", allowed_chars="a")
    assert (found["text"], found["matched"]) == ("", True)


@pytest.mark.parametrize("choice", ["the  hat", " the hat", "the hat"])
def test_a_choice_is_read_as_a_target_is(client: AppClient, choice: str) -> None:
    (found,) = hypotheses(client, "letters", "a", choices=[choice], beam_size=1)
    assert found["text"] == choice.strip()


@pytest.mark.parametrize(
    ("model", "options", "pointer", "words"),
    [
        ("letters", {"pattern": "QMARKER("}, "/pattern", "not a regular expression"),
        ("letters", {"pattern": "a{301}"}, "/pattern", "at most 300 states"),
        ("letters", {"choices": ["a", "QMARKER"]}, "/choices/1", "character at position 0"),
        ("letters", {"choices": ["a"] * 9}, "/choices", "at most 8"),
        ("letters", {"allowed_chars": ["a", "bc"]}, "/allowed_chars/1", "one character"),
        ("symbols", {"allowed_chars": ["AA B"]}, "/allowed_chars/0", "one symbol"),
        ("symbols", {"must_contain": ["B", "AA X"]}, "/must_contain/1", "symbol at position 1"),
        ("letters", {"must_contain": [""]}, "/must_contain/0", "empty"),
        ("letters", {"must_contain": ["a" * 301]}, "/must_contain", "at most 300 states"),
        ("letters", {"pattern": "a", "must_contain": ["e"]}, "/must_contain", "other rules"),
        ("letters", {"pattern": "aa", "max_tokens": 2}, "/max_tokens", "the shortest match has 3"),
        (
            "letters",
            {"pattern": "a+", "target_prefix": "at"},
            "/target_prefix",
            "no match begins with the prefix",
        ),
        (
            "letters",
            {"pattern": "at{3}e", "target_prefix": "at", "max_tokens": 5},
            "/max_tokens",
            "that begins with the prefix has 6",
        ),
        (
            "letters",
            {"choices": ["a"], "copy_unknown": True},
            "/copy_unknown",
            "no unknown token obeys",
        ),
    ],
)
def test_what_is_wrong_with_a_rule_is_said_where_it_stands(
    client: AppClient, model: str, options: dict[str, Any], pointer: str, words: str
) -> None:
    for stream in (False, True):
        body = {"model": model, "source": "AA" if model == "symbols" else "a", **options}
        response = client.post("/translate", json={**body, "stream": stream})
        assert response.status_code == 422, response.text
        assert pointer in [x["pointer"] for x in response.json()["errors"]]
        assert words in response.json()["detail"]
        assert "QMARKER" not in response.text


def test_the_table_of_a_waiting_request_counts_in_the_queue() -> None:
    """Once: all sources share it."""
    bundle = encoder_decoder_in_memory(*tiny_encoder_decoder_files("gru"))
    sides = Sides.of(bundle, SETTINGS)
    writing = Writing.of(bundle.target, "character")
    constraint = compile_rule(Pattern("(?:a[a-h])*"), writing, SETTINGS)
    options = checked_options(sides, TranslateOptions())
    free, held = (Searches(sides, ["a", "at"], ["", ""], options, x) for x in (None, constraint))
    free.read()
    held.read()
    before, after = (sum(x.queued_tokens for _, x in each.running) for each in (free, held))
    assert after == before + constraint.cells
