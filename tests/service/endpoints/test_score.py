"""`POST /score`: the probability of a text, against the graph and against itself."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle.language_model import LanguageModelBundle
from service.bundle.manifest import Precision
from service.bundle.store import read_language_model
from service.bundle.text import BOS_ID, EOS_ID, UNK_ID, normalize
from service.runtime.language_model import OnnxLanguageModelSession
from tests.bundles import ALPHABET
from tests.fakes import AppClient

VOCAB_SIZE = 4 + len(ALPHABET)
EOS, UNK = "\ue002", "\ue003"

# Long enough for several chunks, with line ends to normalize and characters nobody knows.
MIXED = [
    "",
    "a",
    "\n",
    "the white rabbit",
    "one\r\ntwo\rthree",
    "caf\u00e9 cafe\u0301",
    "7\x007",
    "\u202e\u05d0\U0001f407\U0010ffff",
    "with pink eyes ran close by her. " * 9,
]


def score(client: AppClient, model: str, text: str | list[str], **options: Any) -> Any:
    return client.ask("/score", model=model, text=text, **options)


def one(client: AppClient, model: str, text: str, **options: Any) -> Any:
    (result,) = score(client, model, text, **options)["results"]
    return result


Graph = tuple[LanguageModelBundle, OnnxLanguageModelSession]


@pytest.fixture
def graph(models_dir: Path, model: str, precision: Precision) -> Graph:
    """What the client's engine runs."""
    bundle = read_language_model(models_dir / model)
    return bundle, OnnxLanguageModelSession(bundle, precision)


def by_the_graph(graph: Graph, text: str, *, eos: bool, context: str = "") -> float:
    """The same number from the session alone, token by token."""
    bundle, session = graph
    rules = bundle.manifest.normalization
    before = bundle.vocab.encode(normalize(context, rules)).tolist()
    ids = bundle.vocab.encode(normalize(text, rules)).tolist()
    sequence = [BOS_ID, *before, *ids, *([EOS_ID] if eos else [])]
    total, states = 0.0, session.initial_states(1)
    for place, token in enumerate(sequence[:-1]):
        logprobs, states = session.read(np.array([[token]]), np.array([1], np.int32), states)
        if place >= len(before):
            total += float(logprobs[0, 0, sequence[place + 1]])
    return total


@pytest.mark.parametrize("eos", [False, True])
def test_the_score_is_the_graphs(client: AppClient, graph: Graph, model: str, eos: bool) -> None:
    results = score(client, model, MIXED, eos=eos)["results"]
    for text, result in zip(MIXED, results, strict=True):
        assert result["logprob"] == by_the_graph(graph, text, eos=eos)


def test_a_text_is_scored_after_its_context(client: AppClient, graph: Graph, model: str) -> None:
    result = one(client, model, "white rabbit", context="the caf\u00e9\r\n")
    context = "the caf\u00e9\r\n"
    assert result["logprob"] == by_the_graph(graph, "white rabbit", eos=False, context=context)
    assert result["chars"] == 12


def test_a_context_and_a_text_are_together_the_whole(client: AppClient, model: str) -> None:
    first = one(client, model, "the white ")["logprob"]
    second = one(client, model, "rabbit", context="the white ", eos=True)["logprob"]
    whole = one(client, model, "the white rabbit", eos=True)["logprob"]
    assert first + second == pytest.approx(whole, abs=1e-9)


def test_a_list_of_contexts_has_one_for_each_text(client: AppClient, model: str) -> None:
    listed = score(client, model, ["rabbit", "queen", ""], context=["the white ", "the ", "x"])
    expected = [("rabbit", "the white "), ("queen", "the "), ("", "x")]
    assert listed["results"] == [one(client, model, t, context=c) for t, c in expected]
    shared = score(client, model, ["rabbit", "queen"], context="the ")
    assert shared["results"] == [one(client, model, t, context="the ") for t in ("rabbit", "queen")]


@pytest.mark.parametrize("text", MIXED)
def test_the_figures_of_a_score_agree(client: AppClient, model: str, text: str) -> None:
    result = one(client, model, text, eos=True)
    assert result["bits"] == pytest.approx(-result["logprob"] / math.log(2), rel=1e-12)
    assert result["bits"] >= 0.0
    assert (result["bos"], result["eos"]) == (True, True)
    if result["chars"]:
        assert result["bits_per_char"] == pytest.approx(result["bits"] / result["chars"])
        assert result["perplexity_per_char"] == pytest.approx(2 ** result["bits_per_char"])
    else:
        assert result["bits_per_char"] is None
        assert result["perplexity_per_char"] is None


def test_the_empty_text_is_certain_and_its_end_is_not(client: AppClient, model: str) -> None:
    nothing = one(client, model, "", tokens=True)
    assert nothing == {
        "logprob": 0.0,
        "bits": 0.0,
        "bits_per_char": None,
        "perplexity_per_char": None,
        "chars": 0,
        "bos": True,
        "eos": False,
        "unknown": [],
        "unknown_chars": 0,
        "tokens": [],
        "words": None,
        "guesses": None,
        "guesses_low": None,
        "guesses_high": None,
        "state": None,
        "percentile": None,
        "percentile_low": None,
        "percentile_high": None,
        "percentile_texts": None,
    }
    assert str(nothing["bits"]) == "0.0"  # not -0.0
    ended = one(client, model, "", eos=True, tokens=True)
    assert (ended["chars"], ended["eos"]) == (0, True)
    assert ended["logprob"] < 0.0
    assert [token["token"] for token in ended["tokens"]] == [EOS]


def test_one_character_has_a_score(client: AppClient, model: str) -> None:
    result = one(client, model, "a", tokens=True)
    assert result["chars"] == 1
    assert [token["logprob"] for token in result["tokens"]] == [result["logprob"]]


def test_first_characters_and_the_end_are_all_that_can_begin(client: AppClient, model: str) -> None:
    begin = one(client, model, "a", tokens=True, top_logprobs=20)["tokens"][0]
    texts = [x["token"] for x in begin["top"] if x["token"] in ALPHABET]
    scores = score(client, model, texts)["results"]
    likely = {x["token"]: x["logprob"] for x in begin["top"]}
    assert [x["logprob"] for x in scores] == [likely[text] for text in texts]
    assert sum(math.exp(x["logprob"]) for x in begin["top"]) <= 1.0 + 1e-6


def test_without_bos_and_context_the_first_character_is_not_counted(
    client: AppClient, model: str
) -> None:
    result = one(client, model, "rabbit", bos=False, tokens=True, eos=True)
    assert (result["bos"], result["chars"]) == (False, 5)
    first, *others = result["tokens"]
    assert first | {"token": "r"} == first
    assert [first[x] for x in ("logprob", "surprisal_bits", "entropy_bits", "rank")] == [None] * 4
    assert [x["token"] for x in others] == [*"abbit", EOS]
    assert sum(x["logprob"] for x in others) == pytest.approx(result["logprob"], abs=1e-9)


@pytest.mark.parametrize(
    ("text", "eos", "chars", "counts_eos", "counted"),
    [
        ("", False, 0, False, 0),
        ("", True, 0, False, 0),
        ("a", False, 0, False, 1),
        ("a", True, 0, True, 2),
        ("ab", False, 1, False, 2),
    ],
)
def test_short_texts_without_bos_have_defined_scores(
    client: AppClient,
    model: str,
    *,
    text: str,
    eos: bool,
    chars: int,
    counts_eos: bool,
    counted: int,
) -> None:
    result = one(client, model, text, bos=False, eos=eos, tokens=True)
    assert (result["chars"], result["eos"]) == (chars, counts_eos)
    assert len(result["tokens"]) == counted
    known = [x["logprob"] for x in result["tokens"] if x["logprob"] is not None]
    assert sum(known) == pytest.approx(result["logprob"], abs=1e-9)


def test_with_a_context_the_first_character_is_counted_without_bos(
    client: AppClient, model: str
) -> None:
    result = one(client, model, "rabbit", bos=False, context="white ", tokens=True)
    assert result["chars"] == 6
    assert all(x["logprob"] is not None for x in result["tokens"])
    assert result["logprob"] != one(client, model, "rabbit", context="white ")["logprob"]


def test_unknown_characters_are_scored_as_one_token_with_their_positions(
    client: AppClient, model: str
) -> None:
    result = one(client, model, "a7b\r\n\u05d0c", tokens=True)
    assert result["unknown"] == [1, 4]
    assert [x["token"] for x in result["tokens"]] == ["a", UNK, "b", "\n", UNK, "c"]
    assert result["chars"] == 6


def test_unknown_characters_are_left_out_where_that_is_asked_for(
    client: AppClient, model: str
) -> None:
    result = one(client, model, "a7b\u05d0c", unknown="skip")
    plain = one(client, model, "abc")
    assert result["unknown"] == [1, 3]
    assert {**result, "unknown": [], "unknown_chars": 0} == plain
    nothing = one(client, model, "789", unknown="skip", eos=True)
    assert (nothing["chars"], nothing["unknown"]) == (0, [0, 1, 2])
    assert nothing["logprob"] == one(client, model, "", eos=True)["logprob"]


@pytest.mark.parametrize("where", ["text", "context"])
def test_unknown_characters_are_refused_where_that_is_asked_for(
    client: AppClient, model: str, where: str
) -> None:
    body = {"model": model, "text": "abc", "context": "", "unknown": "error"} | {where: "a7b8"}
    answer = client.post("/score", json=body)
    assert answer.status_code == 422
    (mistake,) = answer.json()["errors"]
    assert mistake["pointer"] == f"/{where}"
    assert "2 characters" in mistake["detail"]
    assert "at positions 1, 3 of" in mistake["detail"]
    good = client.ask("/score", model=model, text="abc", unknown="error")["results"][0]
    assert good["unknown"] == []


def test_many_unknown_characters_are_not_all_listed(client: AppClient) -> None:
    body = {"model": "tiny-gru", "text": "7" * 1000, "unknown": "error"}
    detail = client.post("/score", json=body).json()["errors"][0]["detail"]
    assert "1000 characters" in detail
    assert len(detail) < 200


def test_the_printed_forms_of_special_tokens_are_unknown_in_a_text(
    client: AppClient, model: str
) -> None:
    result = one(client, model, "a\ue000\ue001\ue002\ue003", tokens=True)
    assert result["unknown"] == [1, 2, 3, 4]
    assert {x["token"] for x in result["tokens"][1:]} == {UNK}


@pytest.mark.parametrize("text", MIXED)
def test_what_is_told_of_every_character_agrees(client: AppClient, model: str, text: str) -> None:
    result = one(client, model, text, tokens=True, top_logprobs=20, eos=True)
    total = 0.0
    for token in result["tokens"]:
        total += token["logprob"]
        surprisal = -token["logprob"] / math.log(2)
        assert token["surprisal_bits"] == pytest.approx(surprisal, rel=1e-12)
        assert -1e-6 <= token["entropy_bits"] <= math.log2(VOCAB_SIZE) + 1e-6
        top = token["top"]
        assert len(top) == 20
        logprobs = [x["logprob"] for x in top]
        assert logprobs == sorted(logprobs, reverse=True)
        names = [x["token"] for x in top]
        assert len(set(names)) == 20
        if token["rank"] <= 20:
            assert top[token["rank"] - 1]["logprob"] == token["logprob"]
        else:
            assert token["token"] not in names
            assert logprobs[-1] >= token["logprob"]
        assert 1 <= token["rank"] <= VOCAB_SIZE
    assert total == result["logprob"]
    assert [x["token"] for x in result["tokens"]][-1] == EOS
    assert len(result["tokens"]) == result["chars"] + 1


def test_details_do_not_change_the_score(client: AppClient, model: str) -> None:
    plain = score(client, model, MIXED)["results"]
    detailed = score(client, model, MIXED, tokens=True, top_logprobs=3)["results"]
    assert [{**x, "tokens": None} for x in detailed] == plain


def test_a_list_of_256_is_answered_in_order_as_each_alone(client: AppClient, model: str) -> None:
    source = "the queen of hearts, she made some tarts, all on a summer day: 7 \U0001f407\r\n" * 3
    texts = [source[i % 7 : i % 7 + (i * 37) % 150] for i in range(256)]
    answer = score(client, model, texts, eos=True)
    assert len(answer["results"]) == 256
    for i in range(0, 256, 23):
        assert answer["results"][i] == one(client, model, texts[i], eos=True)
    chars = sum(x["chars"] for x in answer["results"])
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (chars, 0)
    # They begin with the same words, in seven ways.
    assert 0 < usage["cached_tokens"] < chars


def test_requests_at_the_same_time_are_answered_as_alone(client: AppClient, model: str) -> None:
    bodies = [
        {"model": model, "text": text, "tokens": i % 2 == 0, "eos": i % 3 == 0}
        for i, text in enumerate(MIXED * 4)
    ]
    together = [response.json()["results"] for response in client.together("/score", bodies)]
    assert together == [client.post("/score", json=x).json()["results"] for x in bodies]


def test_the_answer_says_which_model_and_counts_what_was_read(
    client: AppClient, model: str, precision: Precision
) -> None:
    answer = score(client, model, ["abc", ""], context="de")
    assert (answer["model"], answer["precision"]) == (model, precision)
    assert answer["usage"]["prompt_tokens"] == 2 + 3 + 2
    assert set(answer) == {"model", "precision", "adapt", "results", "usage"}


@settings(max_examples=30, deadline=None)
@given(text=st.text(), eos=st.booleans(), bos=st.booleans(), context=st.text(max_size=5))
def test_any_text_has_a_score(
    client: AppClient, text: str, eos: bool, bos: bool, context: str
) -> None:
    result = one(client, "tiny-lstm", text, eos=eos, bos=bos, context=context)
    assert math.isfinite(result["logprob"])
    assert 0 <= result["chars"] <= len(text)
    assert all(0 <= place < len(text) for place in result["unknown"])
    assert UNK_ID == 3


@pytest.mark.parametrize("options", [{}, {"source": "cat", "model": "tiny-pairs"}])
def test_a_model_without_guess_numbers_says_so(
    both_kinds: AppClient, options: dict[str, str]
) -> None:
    body = {"model": "tiny-lstm", "text": "hat", "guesses": True, **options}
    answer = both_kinds.post("/score", json=body)
    assert answer.status_code == 422
    (mistake,) = answer.json()["errors"]
    assert mistake["pointer"] == "/guesses"


@pytest.mark.parametrize("model", ["tiny-lstm", "tiny-pairs"])
def test_a_stream_to_a_model_without_guess_numbers_is_refused_once(
    both_kinds: AppClient, model: str
) -> None:
    query = {"model": model, "guesses": True}
    lines = b'{"text": "hat", "source": "cat"}\n' * 2
    headers = {"content-type": "application/x-ndjson"}
    answer = both_kinds.post("/score", params=query, content=lines, headers=headers)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/guesses"
