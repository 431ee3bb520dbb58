"""Nobody else in your answer, and bounded: real clients against shipped bundles."""

import concurrent.futures
import random
import shutil
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from service.bundle.language_model import LanguageModelLimits
from service.bundle.store import write_bundle
from tests.bundles import tiny_files
from tests.end_to_end.server import ROOT, Server, serve

MEBIBYTE = 2**20
MODELS = ["alice-lstm", "alice-gru", "alice-rnn"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("models")
    for name in MODELS:
        shutil.copytree(ROOT / "models" / name, folder / name)
    write_bundle(folder, *tiny_files("rnn", limits=LanguageModelLimits(max_tokens=2 * MEBIBYTE)))
    with serve(folder) as running:
        yield running


def requests(seed: int, count: int) -> list[tuple[str, dict[str, Any]]]:
    """A mix of requests that every model of the folder can answer."""
    rng = random.Random(seed)
    text = (ROOT / "training/data/alice/alice.txt").read_text()
    mixed: list[tuple[str, dict[str, Any]]] = []
    for _ in range(count):
        start = rng.randrange(len(text) - 400)
        piece = text[start : start + rng.randrange(400)]
        model = rng.choice(MODELS)
        if rng.random() < 0.5:
            body = {"model": model, "text": piece, "tokens": True, "top_logprobs": 2, "eos": True}
            mixed.append(("/score", body))
        else:
            body = {
                "model": model,
                "prompt": piece,
                "max_tokens": rng.randrange(1, 120),
                "temperature": rng.choice([0.0, 0.7, 1.3]),
                "top_p": rng.choice([0.9, 1.0]),
                "seed": rng.randrange(1000),
                "n": rng.randrange(1, 4),
                "logprobs": 1,
            }
            mixed.append(("/generate", body))
    return mixed


def test_answers_under_load_are_the_answers_alone(server: Server) -> None:
    mixed = requests(seed=1, count=96)
    with server.client() as client:
        # Not the usage: it says what came from the cache.
        alone = [client.post(path, json=body).json()["results"] for path, body in mixed]
        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            answers = list(pool.map(lambda x: client.post(x[0], json=x[1]).json(), mixed))
    assert [answer["results"] for answer in answers] == alone


def test_a_list_of_256_mixed_lengths_is_answered_as_each_text_alone(server: Server) -> None:
    sentence = "Alice had no idea what Latitude was, or Longitude either"
    texts = [sentence[: i % 57] for i in range(256)]
    with server.client() as client:
        body = {"model": "alice-gru", "text": texts, "eos": True}
        listed = client.post("/score", json=body).raise_for_status().json()["results"]
        for i in range(0, 256, 17):
            one = {"model": "alice-gru", "text": texts[i], "eos": True}
            assert client.post("/score", json=one).json()["results"] == [listed[i]]


def test_a_text_of_a_megabyte_scores_in_bounded_memory(server: Server) -> None:
    text = ("the white rabbit was late for tea, " * 30_000)[: 10**6]
    with server.client() as client:
        short = client.post("/score", json={"model": "tiny-rnn", "text": text[:50_000]})
        assert short.status_code == httpx.codes.OK
        before = server.resident_bytes()
        # A small model: what must not grow does so with the text, whatever reads it.
        answer = client.post("/score", json={"model": "tiny-rnn", "text": text})
    result = answer.raise_for_status().json()["results"][0]
    assert result["chars"] == 10**6
    # The body, its text and its ids: a few bytes a character, and nothing that grows with V or H.
    assert server.resident_bytes() - before < 32 * MEBIBYTE


def test_requests_that_are_given_up_free_their_rows_for_others(server: Server) -> None:
    prompts = ["Alice "] * 16
    body = {"model": "alice-lstm", "prompt": prompts, "max_tokens": 4096, "n": 4, "seed": 1}
    quick = {"model": "alice-lstm", "prompt": "The ", "max_tokens": 20, "seed": 2}
    with server.client() as client:
        expected = client.post("/generate", json=quick).json()["results"]
        # Minutes of work, given up at once: without cancelling, the next request waits for it all.
        for _ in range(8):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{server.url}/generate", json=body, timeout=0.2)
        again = client.post("/generate", json=quick, timeout=20.0).json()
        assert again["results"] == expected


def test_sigterm_ends_an_idle_server_with_status_zero() -> None:
    with serve(ROOT / "models") as running:
        assert running.stop() == 0
