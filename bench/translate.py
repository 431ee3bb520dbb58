"""`python -m bench.translate`: compare an encoder-decoder in Unroll with loops in PyTorch.

The model is a run of training/configs/g2p-en.toml (`--run`), exported again, so that both sides
have the same weights. Every ratio is the median over rounds in which the sides take turns.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch

from bench.http import post
from bench.load import Endpoint, Request, closed_loop, percentile
from bench.report import Row, say, table, write
from bench.server import ROOT, free_port, running, unroll
from bench.torch_beam import beam_search
from training.config import EncoderDecoderConfig, load_config
from training.data.pairs import prepare_pairs
from training.export.encoder_decoder import export
from training.loop.cpus import usable_cpus
from training.loop.encoder_decoder import load_best

WORDS = 512
BEAM = 5
WORK = ROOT / "bench" / ".work"
CONFIG = Path("training/configs/g2p-en.toml")


def main() -> int:
    """Measure, print and write bench/results/translate.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/g2p-en"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="length of each round with clients"
    )
    options = parser.parse_args()
    config = load_config(CONFIG)
    if not isinstance(config, EncoderDecoderConfig):
        raise TypeError(CONFIG)
    corpus = prepare_pairs(config.data, CONFIG.resolve().parent)
    models = WORK / "pairs"
    path = export(options.run, corpus, models)
    rng = np.random.default_rng(0)
    known = list(corpus.tests[0].references)
    words = [known[i] for i in rng.choice(len(known), WORDS, replace=False)]
    logs = WORK / "logs"
    port = free_port()
    peer = [sys.executable, "-m", "bench.torch_beam", str(options.run), "--port", str(port)]
    with (
        unroll(models, logs / "translate.log") as server,
        running(peer, port, "/readyz", logs / "torch_beam.log") as loop,
    ):
        rows = _batch(options, words, server.url, path.name)
        rows += _clients(options, words, server.url, loop.url, path.name)
        rows += _greedy(options, words, server.url, path.name)
    say(table(rows))
    write("translate.json", "An encoder-decoder beside loops in PyTorch", rows)
    return 0


def _batch(options: argparse.Namespace, words: list[str], url: str, name: str) -> list[Row]:
    """512 words in one request, against the PyTorch loop in this process on all cores."""
    _, model, source, target, _ = load_best(options.run)
    torch.set_num_threads(usable_cpus())
    sources = [source.encode(word) for word in words]
    body = {"model": name, "source": words, "beam_size": BEAM}

    def ours() -> list[str]:
        answer = post(f"{url}/translate", body)[1]
        return [result["hypotheses"][0]["text"] for result in answer["results"]]

    def theirs() -> list[str]:
        return [target.decode(found) for found in beam_search(model, sources, BEAM)]

    same = sum(a == b for a, b in zip(ours(), theirs(), strict=True)) / len(words)
    say(f"gate: {same:.1%} of the words have the same best hypothesis (int8 beside fp32)")
    if same < 0.97:
        raise RuntimeError("Unroll and PyTorch found different best hypotheses")
    pairs = [(_seconds(ours), _seconds(theirs)) for _ in range(options.rounds)]
    mine, their = (statistics.median(x) for x in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    return [
        Row(
            f"{WORDS} words, beam {BEAM}: /translate",
            WORDS / mine,
            "words/s",
            "PyTorch batch beam",
            ratio,
        ),
        Row(f"{WORDS} words, beam {BEAM}: PyTorch batch beam", WORDS / their, "words/s"),
        Row("the same best hypothesis", 100 * same, "%"),
    ]


def _clients(
    options: argparse.Namespace, words: list[str], url: str, peer_url: str, name: str
) -> list[Row]:
    """32 clients with one word each."""
    requests = [Request(words[i % len(words)], 1, i) for i in range(8192)]

    def ours(request: Request) -> bytes:
        body = {"model": name, "source": request.prompt, "beam_size": BEAM}
        return json.dumps(body).encode()

    def theirs(request: Request) -> bytes:
        return json.dumps({"source": [request.prompt], "beam_size": BEAM}).encode()

    sides = [Endpoint(f"{url}/translate", ours), Endpoint(f"{peer_url}/translate", theirs)]
    rates = []
    for _ in range(options.rounds):
        runs = [
            closed_loop(side, requests, clients=32, duration_s=options.seconds) for side in sides
        ]
        # A request counts as one token.
        rates.append([run.tokens_per_s for run in runs])
    mine, their = (statistics.median(x) for x in zip(*rates, strict=True))
    ratio = statistics.median(a / b for a, b in rates)
    return [
        Row(
            f"32 clients, one word, beam {BEAM}: /translate",
            mine,
            "requests/s",
            "FastAPI with a PyTorch loop",
            ratio,
        ),
        Row(f"32 clients, one word, beam {BEAM}: FastAPI with a PyTorch loop", their, "requests/s"),
    ]


def _greedy(options: argparse.Namespace, words: list[str], url: str, name: str) -> list[Row]:
    """One client, one word, greedy."""

    def body(request: Request) -> bytes:
        return json.dumps({"model": name, "source": request.prompt, "beam_size": 1}).encode()

    requests = [Request(words[i % len(words)], 1, i) for i in range(4096)]
    endpoint = Endpoint(f"{url}/translate", body)
    run = closed_loop(endpoint, requests, clients=1, duration_s=options.seconds)
    return [Row("one client, one word, greedy, p50", 1e3 * percentile(run.latencies_s(), 50), "ms")]


def _seconds(function: Callable[[], object]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


if __name__ == "__main__":
    sys.exit(main())
