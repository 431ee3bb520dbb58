"""The HTTP path: the cost of a request beyond the model, and how it grows with length and clients.

Uses real servers and sockets; one client process shares the machine with them.
"""

import json
import statistics
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from bench.load import Endpoint, Request, closed_loop, cpu_s, mix, percentile
from bench.models import ensure
from bench.report import RESULTS, Row
from bench.server import ROOT, Server, unroll
from service.bundle.store import read_language_model
from service.runtime.language_model import OnnxLanguageModelSession

_LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz     "))


def http_rows(work: Path, *, quick: bool) -> list[Row]:
    """Measure every figure of the HTTP path and draw the plots."""
    name = ensure(work, 2, 512)
    logs = work / "logs"
    rows = []
    with unroll(work / "models" / name, logs / "unroll.log") as server:
        rows += _latency(work, name, server, rounds=5 if quick else 15)
        rows += _lines(server, name)
        rows += _growth_with_length(server, name, quick=quick)
    with unroll(work / "models" / name, logs / "bounded.log", max_queue_rows=64) as server:
        rows += _growth_with_clients(server, name, duration_s=1.5 if quick else 4.0)
    with unroll(ROOT / "models", logs / "idle.log") as server:
        rows.append(_idle(server, duration_s=5.0 if quick else 20.0))
    return rows


def generate_endpoint(server: Server, model: str) -> Endpoint:
    """The endpoint of `/generate`, with the body for a request."""

    def body(request: Request) -> bytes:
        return json.dumps(
            {
                "model": model,
                "prompt": request.prompt,
                "max_tokens": request.max_tokens,
                "temperature": request.temperature,
                "seed": request.seed,
            }
        ).encode()

    return Endpoint(f"{server.url}/generate", body)


def post(url: str, document: Any) -> tuple[float, Any]:
    """Send a request; the seconds that the answer took, and the answer."""
    data = json.dumps(document).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    begin = time.perf_counter()
    with urllib.request.urlopen(request, timeout=300) as answer:
        content = answer.read()
    return time.perf_counter() - begin, json.loads(content)


def text_of(size: int, seed: int) -> str:
    """A random text of `size` characters in the benchmark's vocabulary."""
    return "".join(np.random.default_rng(seed).choice(_LETTERS, size))


def _latency(work: Path, name: str, server: Server, *, rounds: int) -> list[Row]:
    """One client: the time of a whole answer and of its first token, over the bare graph's time."""
    session = OnnxLanguageModelSession(read_language_model(work / "models" / name / name), "int8")
    stepper = session.stepper(1)
    stepper.tokens[0] = 40
    endpoint = generate_endpoint(server, name)
    tokens, prompt_chars = 32, 20
    prompt = np.full((1, 1 + prompt_chars), 40, np.int64)
    length = np.array([prompt.shape[1]], np.int32)
    zeros = session.initial_states(1)
    overheads, wholes, firsts = [], [], []
    for number in range(rounds):
        begin = time.perf_counter()
        for _ in range(20):
            session.read(prompt, length, zeros)
            # The last token is written but never read.
            for _ in range(tokens - 1):
                stepper.step(1)
        bare_s = (time.perf_counter() - begin) / 20
        requests = [Request(text_of(prompt_chars, 997 * number + i), tokens, i) for i in range(400)]
        whole = closed_loop(endpoint, requests, clients=1, duration_s=0.4, warm_up_s=0.1)
        one = [Request(text_of(prompt_chars, 10**6 + 997 * number + i), 1, i) for i in range(400)]
        first = closed_loop(endpoint, one, clients=1, duration_s=0.2, warm_up_s=0.1)
        overheads.append(percentile(whole.latencies_s(), 50) - bare_s)
        wholes.append(percentile(whole.latencies_s(), 50))
        firsts.append(percentile(first.latencies_s(), 50))
    return [
        Row(f"{name}: /generate, 1 client, {tokens} tokens, p50", _ms(wholes), "ms"),
        Row(f"{name}: the same over the bare graph", _ms(overheads), "ms"),
        Row(f"{name}: /generate, 1 client, first token, p50", _ms(firsts), "ms"),
    ]


def _lines(server: Server, name: str) -> list[Row]:
    """1,000 lines in one request."""
    rng = np.random.default_rng(0)
    lines = [text_of(int(size), i) for i, size in enumerate(rng.integers(20, 80, 1000))]
    post(f"{server.url}/score", {"model": name, "text": lines[:10]})
    seconds = min(post(f"{server.url}/score", {"model": name, "text": lines})[0] for _ in range(3))
    return [
        Row(
            f"{name}: /score, 1,000 lines in one request", sum(map(len, lines)) / seconds, "chars/s"
        )
    ]


def _growth_with_length(server: Server, name: str, *, quick: bool) -> list[Row]:
    """Time to score a text by its length, which should grow at most linearly."""
    sizes = [2**i for i in range(8, 15 if quick else 18, 1)]
    seconds = [
        min(
            post(f"{server.url}/score", {"model": name, "text": text_of(size, i)})[0]
            for i in range(3 if size < 2**14 else 1)
        )
        for size in sizes
    ]
    _plot("length.png", name, {"characters in a text": sizes, "seconds to score it": seconds})
    # 1 is linear. The fixed cost of a request makes short texts more expensive per character.
    exponent = float(np.polyfit(np.log(sizes[2:]), np.log(seconds[2:]), 1)[0])
    return [
        Row(f"{name}: /score, one text of {sizes[-1]:,} chars", sizes[-1] / seconds[-1], "chars/s"),
        Row(f"{name}: seconds grow as length to the power of", exponent, ""),
    ]


def _growth_with_clients(server: Server, name: str, *, duration_s: float) -> list[Row]:
    """Tokens a second by number of clients; at most 64 rows may queue, the rest get 429."""
    counts = (1, 2, 4, 8, 16, 32, 64, 128, 256, 384)
    endpoint = generate_endpoint(server, name)
    speeds, rows = [], []
    for clients in counts:
        # New prompts every time, so that the prefix cache does not help.
        requests = mix(4096, seed=clients)
        run = closed_loop(
            endpoint, requests, clients=clients, duration_s=duration_s, server_pid=server.pid
        )
        speeds.append(run.tokens_per_s)
        label = f"{name}: {clients} client{'s' * (clients > 1)}"
        rows.append(Row(f"{label}, mixed lengths", run.tokens_per_s, "tokens/s"))
        if run.refused:
            rows.append(
                Row(f"{label}: refused at once", run.refused / len(run.answers), "of requests")
            )
    _plot("clients.png", name, {"clients": counts, "tokens a second": speeds})
    return rows


def _idle(server: Server, *, duration_s: float) -> Row:
    time.sleep(2.0)
    before = cpu_s(server.pid)
    time.sleep(duration_s)
    used = (cpu_s(server.pid) - before) / duration_s
    return Row("idle server with three models: processor", 100 * used, "% of a core")


def _ms(seconds: Sequence[float]) -> float:
    return 1000 * statistics.median(seconds)


def _plot(file: str, title: str, axes: Mapping[str, Sequence[float]]) -> None:
    """Plot the second of the two named axes over the first, both logarithmic."""
    (x_label, x), (y_label, y) = axes.items()
    figure, plot = plt.subplots(figsize=(5.5, 3.5), layout="constrained")
    plot.plot(x, y, marker="o")
    plot.set(xscale="log", yscale="log", xlabel=x_label, ylabel=y_label, title=title)
    plot.grid(visible=True, which="both", alpha=0.3)
    RESULTS.mkdir(exist_ok=True)
    figure.savefig(RESULTS / file, dpi=120)
    plt.close(figure)
