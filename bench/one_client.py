"""`python -m bench.one_client`: one client over HTTP, beside the loop that its answer needs.

    256 tokens     `/generate` of 256 tokens after a prompt of 20 characters, two layers of 128
                   units, over a kept connection, beside the simplest honest loop on the same graph
                   in one thread: arrays bound once, the prompt read in one run, then a draw from
                   numpy's generator and a step for each token
    first token    `/generate` of one token, on a server that has been idle for 10 ms
    reading        characters a second of one text in chunks of 64, one layer of 128 units, as
                   `/score` reads it: the int8 graph, and the graph that is served by default,
                   beside the fp32 graph, without HTTP

Times by the clock, p50 of all requests of a round; the two sides of a ratio take turns, and a ratio
is the median of the rounds' ratios. With `--against`, the server of another checkout takes turns
as well.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack

import numpy as np

from bench.engine import interleaved, reading
from bench.load import percentile
from bench.models import WORK, ensure
from bench.plain_clients import connected, posts, texts
from bench.report import RESULTS, Row, machine, say, table, write
from bench.requests import add_server_options, described, is_plain
from bench.server import Server, unroll
from service.bundle.arrays import Float32Array
from service.bundle.manifest import Precision
from service.bundle.store import read_language_model
from service.bundle.text import BOS_ID
from service.runtime.language_model import OnnxLanguageModelSession

TOKENS = 256
CHARS = 20
IDLE_S = 0.01
_WRITING = (2, 128)
_READING = (1, 128)
_seeds = itertools.count(1)


def main() -> None:
    """Measure, print and, with the default settings, write `one-client.json`."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.one_client",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_server_options(parser)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.7, help="length of each turn")
    parser.add_argument("--quick", action="store_true", help="two rounds of 0.3 s")
    options = parser.parse_args()
    rounds, seconds = (2, 0.3) if options.quick else (options.rounds, options.seconds)
    settings = dict(options.set)
    title = f"one client; settings: {described(settings)}"
    say(f"{machine()}; {title}; {rounds} rounds of {seconds:g} s")
    name = ensure(WORK, *_WRITING)
    models, logs = WORK / "models" / name, WORK / "logs"
    with ExitStack() as stack:
        log = logs / "one-client.log"
        servers = {"Unroll": stack.enter_context(unroll(models, log, **settings))}
        if options.against:
            place = options.against.resolve()
            log = logs / "one-client-against.log"
            other = stack.enter_context(unroll(models, log, place, **settings))
            servers[f"Unroll in {options.against}"] = other
        rows = writing(name, servers, rounds, seconds) + first_tokens(
            name, servers, rounds, seconds
        )
    rows += _reading(rounds, min(0.2, seconds))
    say(table(rows))
    if is_plain(options):
        write("one-client.json", title, rows)
        say(f"written: {RESULTS / 'one-client.json'}")


def writing(name: str, servers: Mapping[str, Server], rounds: int, duration_s: float) -> list[Row]:
    """Answers of 256 tokens, and the bare loop."""
    bundle = read_language_model(WORK / "models" / name / name)
    bare = bare_loop(OnnxLanguageModelSession(bundle, bundle.manifest.precision))
    seconds: dict[str, list[float]] = {label: [] for label in [*servers, _BARE]}
    for _ in range(rounds):
        for label, server in servers.items():
            seconds[label].append(_p50_s(name, server, TOKENS, duration_s))
        until, times = time.perf_counter() + duration_s, []
        while (begin := time.perf_counter()) < until:
            bare()
            times.append(time.perf_counter() - begin)
        seconds[_BARE].append(percentile(times, 50))
    return rows_of(f"{name}, 1 client, {TOKENS} tokens", seconds)


_BARE = "bare loop with numpy sampling"


def first_tokens(
    name: str, servers: Mapping[str, Server], rounds: int, duration_s: float
) -> list[Row]:
    """Answers of one token on an idle server."""
    seconds: dict[str, list[float]] = {label: [] for label in servers}
    for _ in range(rounds):
        for label, server in servers.items():
            seconds[label].append(_p50_s(name, server, 1, duration_s, pause_s=IDLE_S))
    return rows_of(f"{name}, idle server, first token", seconds)


def _p50_s(
    name: str, server: Server, tokens: int, duration_s: float, pause_s: float = 0.0
) -> float:
    url = f"{server.url}/generate"
    with connected(url, posts(url, _bodies(name, tokens)), clients=1) as client:
        span = client.span(duration_s, server.pid, pause_s=pause_s)
    return percentile(span.latencies_s, 50)


def _bodies(name: str, tokens: int) -> Iterator[Mapping[str, object]]:
    seed = next(_seeds)
    for number, text in enumerate(texts(CHARS, seed)):
        yield {"model": name, "prompt": text, "max_tokens": tokens, "seed": number}


def bare_loop(session: OnnxLanguageModelSession) -> Callable[[], list[int]]:
    """A function that reads a prompt and writes `TOKENS` tokens: what a script would do."""
    stepper = session.stepper(1)
    rng = np.random.default_rng(0)
    length = np.array([1 + CHARS], np.int32)
    zeros = session.initial_states(1)

    def write() -> list[int]:
        prompt = rng.integers(4, session.vocab_size, (1, 1 + CHARS))
        prompt[0, 0] = BOS_ID
        logprobs, states = session.read(prompt, length, zeros)
        for mine, after in zip(stepper.states, states, strict=True):
            mine[:] = after
        written = [drawn(logprobs[0, -1], rng.random())]
        while len(written) < TOKENS:
            stepper.tokens[0] = written[-1]
            stepper.step(1)
            written.append(drawn(stepper.logprobs[0], rng.random()))
        return written

    return write


def drawn(logprobs: Float32Array, uniform: float) -> int:
    """The token at a uniform number in [0, 1): the cumulated distribution, inverted."""
    cumulated = np.cumsum(np.exp(logprobs, dtype=np.float64))
    return int(np.searchsorted(cumulated, uniform * cumulated[-1], side="right"))


def _reading(rounds: int, slice_s: float) -> list[Row]:
    name = ensure(WORK, *_READING)
    bundle = read_language_model(WORK / "models" / name / name)
    precisions: tuple[Precision, ...] = ("int8", "fp32")
    timing = interleaved(
        {x: reading(OnnxLanguageModelSession(bundle, x), 1) for x in precisions},
        rounds=rounds,
        slice_s=slice_s,
    )
    labels: Mapping[str, Precision] = {
        "int8 graph": "int8",
        "the graph that is served": bundle.manifest.precision,
    }
    return [
        Row(
            f"{name}, reading, 1 row: {label}",
            1 / timing[precision].median,
            "chars/s",
            "fp32 graph",
            timing[precision].times_faster_than(timing["fp32"]),
        )
        for label, precision in labels.items()
    ]


def rows_of(where: str, seconds: Mapping[str, list[float]]) -> list[Row]:
    """The times of each subject; the first with how many times faster it is than each other."""
    (label, mine), *others = seconds.items()
    value = 1e3 * statistics.median(mine)
    rows = [Row(f"{where}: {label}", value, "ms")]
    if others:
        rows = []
    for other, theirs in others:
        ratio = statistics.median(y / x for x, y in zip(mine, theirs, strict=True))
        rows.append(Row(f"{where}: {label}", value, "ms", other, ratio))
    return rows + [
        Row(f"{where}: {other}", 1e3 * statistics.median(theirs), "ms") for other, theirs in others
    ]


if __name__ == "__main__":
    main()
