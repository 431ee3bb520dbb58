"""States between server processes: what one replica began, another goes on with, bit for bit."""

import concurrent.futures
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.bundle.store import write_bundle
from tests.bundles import tiny_files
from tests.end_to_end.server import NO_CERTIFICATES, Server, serve
from tests.end_to_end.test_workers import workers_of

KEY = "a key that the replicas share"
NO_END = {"\ue002": -1000.0}
BODY = {"model": "tiny-lstm", "logit_bias": NO_END, "temperature": 1.5, "logprobs": 2}
PIECES = (100, 156, 1, 60)  # one ends where a block of noise does
# No combining marks at the ends: each part of a text is normalized by itself.
TEXTS = ("the white rabbit ", "took a watch\n", "out of its ", "waistcoat, and ran", "!")


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for cell in ("gru", "lstm"):
        write_bundle(folder, *tiny_files(cell))
    return folder


@pytest.fixture(scope="module", params=["fp32", "int8"])
def replicas(models_dir: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Server, Server]]:
    """Two processes with one key, and with everything else different that must not show."""
    same = {"precision": request.param, "state_key": KEY}
    with (
        serve(models_dir, **same, engine_threads=1, prefix_cache_bytes=0) as one,
        serve(models_dir, **same, engine_threads=2, max_rows=3) as other,
    ):
        yield one, other


def ask(server: Server, path: str, **body: Any) -> Any:
    answer = httpx.post(f"{server.url}{path}", json=body, timeout=60.0, verify=NO_CERTIFICATES)
    assert answer.status_code == 200, answer.text
    return answer.json()["results"]


def in_pieces(replicas: tuple[Server, Server], seed: int) -> tuple[str, list[Any]]:
    """A choice in pieces, each on the other replica."""
    begin: dict[str, Any] = {"prompt": "Alice ", "seed": seed}
    text, tokens = "", []
    for turn, length in enumerate(PIECES):
        server = replicas[(turn + seed) % 2]
        body = BODY | begin
        ((choice,),) = (
            x["choices"]
            for x in ask(server, "/generate", **body, max_tokens=length, return_state=True)
        )
        text += choice["text"]
        tokens += choice["logprobs"]
        assert choice["seed"] == seed
        begin = {"state": choice["state"]}
    return text, tokens


def test_a_choice_goes_on_on_the_other_replica(replicas: tuple[Server, Server]) -> None:
    """All of them at the same time, so that rows of several clients share the batches."""
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        pieces = list(pool.map(lambda seed: in_pieces(replicas, seed), range(6)))
    for seed, (text, tokens) in enumerate(pieces):
        for server in replicas:
            ((whole,),) = (
                x["choices"]
                for x in ask(
                    server, "/generate", **BODY, prompt="Alice ", seed=seed, max_tokens=sum(PIECES)
                )
            )
            assert whole["text"] == text
            assert whole["logprobs"] == tokens


def test_a_score_goes_on_on_the_other_replica(replicas: tuple[Server, Server]) -> None:
    for model in ("tiny-gru", "tiny-lstm"):
        body = {"model": model, "tokens": True, "top_logprobs": 3}
        (whole,) = ask(replicas[0], "/score", **body, text="".join(TEXTS), eos=True)
        tokens: list[Any] = []
        state = None
        for turn, text in enumerate(TEXTS):
            last = text == TEXTS[-1]
            asked = {**body, "state": state, "eos": last, "return_state": not last}
            (result,) = ask(replicas[turn % 2], "/score", **asked, text=text)
            tokens += result["tokens"]
            state = result["state"]
        assert tokens == whole["tokens"]


def test_continuations_are_ranked_alike_on_both(replicas: tuple[Server, Server]) -> None:
    body = {"model": "tiny-gru"}
    ends = ["rabbit", "rabble", "queen of hearts", "", "r"] * 5
    (start,) = ask(replicas[0], "/score", **body, text="the white ", return_state=True)
    ranked = [ask(x, "/score", **body, text=ends, state=start["state"], eos=True) for x in replicas]
    assert ranked[0] == ranked[1]
    for end, result in zip(ends, ranked[0], strict=True):
        (alone,) = ask(replicas[0], "/score", **body, text=end, state=start["state"], eos=True)
        assert alone == result


def test_a_replica_with_another_key_refuses(
    replicas: tuple[Server, Server], models_dir: Path
) -> None:
    body = {"model": "tiny-gru", "text": "a"}
    (start,) = ask(replicas[0], "/score", **body, return_state=True)
    with serve(models_dir) as stranger:
        sent = body | {"state": start["state"]}
        answer = httpx.post(f"{stranger.url}/score", json=sent, timeout=60.0)
    assert answer.status_code == 422
    ((mistake),) = answer.json()["errors"]
    assert mistake["pointer"] == "/state"


def test_workers_share_a_key_that_nobody_gave(models_dir: Path) -> None:
    body = {"model": "tiny-gru", "text": "the white rabbit"}
    with serve(models_dir, workers=2, engine_threads=1) as server:
        assert len(workers_of(server.process.pid)) == 2
        (start,) = ask(server, "/score", **body, return_state=True)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            asked = [body | {"state": start["state"]}] * 32
            results = list(pool.map(lambda x: ask(server, "/score", **x), asked))
    assert all(result == results[0] for result in results)
