"""Guess numbers: train, export and serve; the service samples what it scores, and the curve holds.

Everything is compared with all texts of the model that matter, scored by the service itself.
"""

import functools
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.app import create_app
from service.bundle.store import read_language_model
from service.settings import Settings
from tests.fakes import AppClient
from tests.training.helpers import tiny_document, tiny_ngram_document, write_toml
from training.__main__ import main

LETTERS = "abc"
LONGEST = 24  # of the texts that are drawn
SAMPLES = 8192
MODELS = ["tiny-ngram", "tiny"]  # the second mixes a network with an n-gram
NDJSON = {"content-type": "application/x-ndjson"}


def lines() -> list[str]:
    """Words of three letters, few of them long, each once."""
    rng = np.random.default_rng(0)
    found = {
        "".join(rng.choice(list(LETTERS), min(7, 1 + rng.geometric(0.45)), p=[0.7, 0.2, 0.1]))
        for _ in range(600)
    }
    return sorted(found)


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guesses")
    (folder / "text.txt").write_text("".join(line + "\n" for line in lines()))
    data = {"documents": "line", "valid_fraction": 0.2, "test_fraction": 0.3}
    ngram = tiny_ngram_document(data=data)
    mixture = {**tiny_document(data=data, training={"steps": 30}), "ngram": {"order": 3}}
    for name, document in zip(MODELS, (ngram, mixture), strict=True):
        config = write_toml(folder / f"{name}.toml", document)
        assert main(["train", str(config), "--run", str(folder / name)]) == 0
        assert main(["export", str(folder / name), "--models", str(folder / "models")]) == 0
    return folder / "models"


@pytest.fixture(scope="module")
def client(models_dir: Path) -> Iterator[AppClient]:
    settings = Settings(models_dir=models_dir, max_n=1024, max_inputs=4096)
    with AppClient(create_app(settings)) as running:
        yield running


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def scored(client: AppClient, model: str, texts: list[str], **options: Any) -> list[Any]:
    parts = (texts[i : i + 4096] for i in range(0, len(texts), 4096))
    return [
        result
        for part in parts
        for result in client.ask("/score", model=model, text=part, **options)["results"]
    ]


@functools.cache
def likely(client: AppClient, model: str, least: float) -> list[str]:
    """All texts that are at least so likely (nats, with the end), likeliest first.

    No text is likelier than what it begins with: rarer beginnings need not be continued.
    """
    begun, found = [""], []
    while begun:
        wholes = scored(client, model, begun, eos=True)
        found += [(x["logprob"], text) for x, text in zip(wholes, begun, strict=True)]
        longer = [text + letter for text in begun for letter in LETTERS]
        results = scored(client, model, longer)
        begun = [text for x, text in zip(results, longer, strict=True) if x["logprob"] >= least]
    return [text for logprob, text in sorted(found, reverse=True) if logprob >= least]


def drawn_share(result: Any) -> float:
    """q / p: tokens without text are never drawn, and what they had goes to the others."""
    share = 1.0
    for token in result["tokens"]:
        textless = [x for x in token["top"] if x["token"] in ("\ue000", "\ue001", "\ue003")]
        share /= 1.0 - sum(math.exp(x["logprob"]) for x in textless)
    return share


@functools.cache
def drawn_texts(client: AppClient, model: str) -> Counter[str]:
    """How often `/generate` wrote each text at temperature 1; those without an end are left out."""
    found: Counter[str] = Counter()
    for seed in range(SAMPLES // 1024):
        answer = client.ask(
            "/generate", model=model, prompt="", n=1024, seed=seed, max_tokens=LONGEST
        )
        choices = answer["results"][0]["choices"]
        found.update(x["text"] for x in choices if x["finish_reason"] == "stop")
    return found


def test_the_service_samples_what_it_scores(client: AppClient, model: str) -> None:
    texts = likely(client, model, math.log(4 / SAMPLES))
    results = scored(client, model, texts, eos=True, tokens=True, top_logprobs=20)
    probs = [math.exp(x["logprob"]) * drawn_share(x) for x in results]
    kept = [(text, p) for text, p in zip(texts, probs, strict=True) if p * SAMPLES >= 5]
    assert len(kept) > 30
    assert max(len(text) for text, _ in kept) < LONGEST
    drawn = drawn_texts(client, model)
    # All other texts are one class.
    counts = np.array([drawn[text] for text, _ in kept])
    expected = SAMPLES * np.array([p for _, p in kept])
    counts = np.append(counts, SAMPLES - counts.sum())
    expected = np.append(expected, SAMPLES - expected.sum())
    statistic = float(((counts - expected) ** 2 / expected).sum())
    # Chi-squared with so many degrees of freedom exceeds this once in a thousand times
    # (Wilson and Hilferty 1931).
    freedom = len(kept)
    limit = freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < limit
    # The same draws under other probabilities, 15 % off, fail the test.
    wrong = expected * np.where(np.arange(len(expected)) % 2, 1.15, 0.85)
    assert ((counts - wrong) ** 2 / wrong).sum() > limit


def test_what_the_service_draws_counts_the_likelier_texts(client: AppClient, model: str) -> None:
    texts = likely(client, model, math.log(4 / SAMPLES))
    results = scored(client, model, texts, eos=True, tokens=True, top_logprobs=20)
    drawn = drawn_texts(client, model)
    weights = [math.exp(-x["logprob"]) / drawn_share(x) / SAMPLES for x in results]
    terms = np.array([drawn[text] * w for text, w in zip(texts, weights, strict=True)])
    squares = np.array([drawn[text] * w**2 for text, w in zip(texts, weights, strict=True)])
    for count in (3, 10, 30, len(texts)):
        error = math.sqrt(squares[:count].sum())
        assert terms[:count].sum() == pytest.approx(count, abs=3 * error)
        assert error < 0.2 * count


def test_the_numbers_hold_for_the_texts_as_the_service_ranks_them(
    client: AppClient, model: str
) -> None:
    texts = likely(client, model, -9.0)
    assert len(texts) > 100
    results = scored(client, model, texts, guesses=True)
    assert all(x["eos"] for x in results)
    logprobs = np.array([x["logprob"] for x in results])
    off = []
    for logprob, found in zip(logprobs.tolist(), results, strict=True):
        rank = 1 + int((logprobs > logprob + 1e-6).sum())
        # Twice the interval: the errors of all texts come from the same samples.
        low = found["guesses"] - 2 * (found["guesses"] - found["guesses_low"])
        high = found["guesses"] + 2 * (found["guesses_high"] - found["guesses"])
        assert low - 0.1 <= rank <= high + 0.1
        off.append(found["guesses"] / rank - 1.0)
    assert np.abs(off).max() < 0.15
    assert abs(np.mean(off)) < 0.05


def test_every_way_to_ask_gives_the_same_numbers(client: AppClient, model: str) -> None:
    texts = ["a", "abca", "", "aaaaaaa", "c" * 40, "a\u00e9b"]
    results = scored(client, model, texts, guesses=True)
    assert results == [scored(client, model, [text], guesses=True)[0] for text in texts]
    plain = scored(client, model, texts, eos=True)
    names = ("guesses", "guesses_low", "guesses_high")
    assert [{**x, **dict.fromkeys(names)} for x in results] == plain
    content = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    query = {"model": model, "guesses": "true"}
    answer = client.request("POST", "/score", params=query, content=content, headers=NDJSON)
    told = [json.loads(line) for line in answer.text.splitlines()]
    assert [[x[name] for name in names] for x in told] == [[x[n] for n in names] for x in results]
    *_, long, unknown = results
    assert (long["guesses"], long["guesses_high"]) == (None, None)  # beyond what samples can say
    assert long["guesses_low"] > 1000
    assert [unknown[name] for name in names] == [None] * 3  # never tried
    skipped = scored(client, model, ["a\u00e9b", "ab"], guesses=True, unknown="skip")
    assert skipped[0]["guesses"] == skipped[1]["guesses"]


@pytest.mark.parametrize(
    ("options", "pointer"),
    [
        ({"eos": False}, "/eos"),
        ({"bos": False}, "/bos"),
        ({"context": "a"}, "/context"),
        ({"adapt": True}, "/adapt"),
    ],
)
def test_a_guess_number_is_of_a_whole_text(
    client: AppClient, options: dict[str, Any], pointer: str
) -> None:
    body = {"model": MODELS[0], "text": "ab", "guesses": True, **options}
    answer = client.post("/score", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == pointer


def test_a_text_after_a_state_has_no_guess_number(client: AppClient) -> None:
    state = client.ask("/score", model=MODELS[0], text="a", return_state=True)
    state = state["results"][0]["state"]
    body = {"model": MODELS[0], "text": "ab", "guesses": True, "state": state}
    answer = client.post("/score", json=body)
    assert answer.json()["errors"][0]["pointer"] == "/state"


@pytest.mark.parametrize(
    ("options", "pointer"),
    [
        ({"mode": "total"}, "/guesses"),
        ({"eos": "false"}, "/eos"),
        ({"bos": "false"}, "/bos"),
    ],
)
def test_a_stream_is_refused_before_its_answer(
    client: AppClient, options: dict[str, str], pointer: str
) -> None:
    query = {"model": MODELS[0], "guesses": "true", **options}
    headers = {"content-type": "text/plain"}
    answer = client.request("POST", "/score", params=query, content="ab", headers=headers)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == pointer


def test_the_curve_is_in_the_manifest_and_in_the_details(
    client: AppClient, models_dir: Path, model: str
) -> None:
    curve = read_language_model(models_dir / model).manifest.guesses
    assert curve is not None
    assert client.get(f"/models/{model}").json()["guesses"] == curve.model_dump()
    assert curve.samples == 20_000
    assert curve.typical is not None
    assert 1.0 < curve.typical < 1000.0
