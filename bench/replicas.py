"""`python -m bench.replicas`: what one, two and three replicas behind nginx answer (as root).

Every replica is a server process with a fixed share of a processor, far below a whole one, so that
the shares of all of them, nginx and the clients fit on two processors. The same number of clients
for each replica send their next request when the last one has been answered. All replicas run all
the time. Each number of them takes turns under load with a single one, round after round.

Then every replica is asked the same things, one by one and while all are busy. The answers have to
be the same bit for bit, and a state handle of one has to continue the text in the next one.

At last, one replica is ended by SIGTERM under load and another one is killed: only requests that
had begun on the killed one may fail.
"""

import argparse
import concurrent.futures
import itertools
import json
import os
import shutil
import signal
import statistics
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from bench.http import generate_endpoint
from bench.load import Run, closed_loop, cpu_s, mix, percentile
from bench.models import WORK
from bench.nginx import nginx
from bench.report import RESULTS, Row, machine, say, table, write
from bench.server import ROOT, Server, unroll
from bench.shares import NoShares, join, share

MODEL = "alice-gru"
COUNTS = (1, 2, 3)
CLIENTS = 8  # for each replica
SHARE = 0.2  # of a processor
LENGTHS = (8, 16, 32)
ONE = "1 replica behind nginx"
_ENDS_AFTER_S = 2.0
STATE_KEY = "shared by all replicas"


class Wrong(Exception):
    """Replicas answer differently, or an answer was lost."""


def main() -> int:
    """Measure, compare, print and write `replicas.json`."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.replicas",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each turn")
    parser.add_argument("--share", type=float, default=SHARE, help="of a processor, for a replica")
    options = parser.parse_args()
    try:
        rows = measure(options.rounds, options.seconds, options.share)
    except (NoShares, Wrong) as error:
        say(f"error: {error}")
        return 1
    say(table(rows))
    if options.share == SHARE:
        write("replicas.json", title_of(options.share), rows)
        say(f"written: {RESULTS / 'replicas.json'}")
    return 0


def title_of(cpus: float) -> str:
    """The title of the results."""
    return f"{MODEL}, replicas with {cpus:g} of a processor each, {CLIENTS} clients for each"


def measure(rounds: int, seconds: float, cpus: float) -> list[Row]:
    """Every figure. Raises NoShares and Wrong."""
    say(f"{machine()}; {title_of(cpus)}; {rounds} rounds of {seconds:g} s")
    with ExitStack() as stack:
        # The clients are here, so they share this group with nginx.
        join(stack.enter_context(share("clients", None)), os.getpid())
        replicas = [started(stack, number, cpus) for number in range(max(COUNTS))]
        fronts = [behind_nginx(stack, replicas[:count]) for count in COUNTS]
        targets = [("1 replica without nginx", 1, replicas[0])]
        targets += [
            (f"{count} replicas behind nginx", count, front)
            for count, front in zip(COUNTS, fronts, strict=True)
            if count > 1
        ]
        # Other texts in each turn: the first replica would have the most of them in its cache.
        seeds = itertools.count()
        pairs: dict[str, list[tuple[Turn, Turn]]] = {name: [] for name, _, _ in targets}
        for _ in range(rounds):
            # Each beside one replica, since other programs on the machine come and go.
            for name, count, target in targets:
                turn = under_load(target, replicas[:count], seconds, next(seeds))
                beside = under_load(fronts[0], replicas[:1], seconds, next(seeds))
                pairs[name].append((turn, beside))
        rows = rows_of([(name, count, pairs[name]) for name, count, _ in targets])
        rows += compared(replicas, fronts[-1])
        for name, number in (("SIGTERM", signal.SIGTERM), ("SIGKILL", signal.SIGKILL)):
            rows += ended(replicas.pop(), fronts[-1], name, number)
        return rows


def started(stack: ExitStack, number: int, cpus: float) -> Server:
    """A replica, in a group of its own once it serves."""
    models, log = WORK / "replicas-models", WORK / "logs" / f"replica-{number}.log"
    for name in (MODEL, "g2p-en", "language-id"):
        shutil.copytree(ROOT / "models" / name, models / name, dirs_exist_ok=True)
    settings = {"workers": 1, "engine_threads": 1, "state_key": STATE_KEY}
    replica = stack.enter_context(unroll(models, log, log_level="warning", **settings))
    join(stack.enter_context(share(f"replica-{number}", cpus)), replica.pid)
    return replica


def behind_nginx(stack: ExitStack, replicas: Sequence[Server]) -> Server:
    """nginx in front of some replicas."""
    addresses = [each.url.removeprefix("http://") for each in replicas]
    folder = WORK / f"nginx-{os.getpid()}-{len(replicas)}"
    front = stack.enter_context(nginx(addresses, folder))
    return Server(front.url, front.process.pid)


@dataclass(frozen=True, slots=True)
class Turn:
    """A time span under load."""

    run: Run
    used: float  # processors that its replicas used, on average, for each

    @property
    def rate(self) -> float:
        """Requests answered a second."""
        run = self.run
        ended = sum(run.begin <= answer.end <= run.end for answer in run.good)
        return ended / (run.end - run.begin)


def under_load(target: Server, replicas: Sequence[Server], seconds: float, seed: int) -> Turn:
    """Put some replicas under load, each by the same number of clients."""
    endpoint = generate_endpoint(target, MODEL)
    clients = CLIENTS * len(replicas)
    requests = mix(4096, LENGTHS, seed)
    begun, before = time.perf_counter(), sum(cpu_s(each.pid) for each in replicas)
    run = closed_loop(endpoint, requests, clients=clients, duration_s=seconds)
    spent_s = sum(cpu_s(each.pid) for each in replicas) - before
    return Turn(run, spent_s / (time.perf_counter() - begun) / len(replicas))


def rows_of(measured: Sequence[tuple[str, int, Sequence[tuple[Turn, Turn]]]]) -> list[Row]:
    """Medians of what was measured, and of its ratio to the turns of one replica beside it."""
    one = [beside for _, _, pairs in measured for _, beside in pairs]
    rows = figures(ONE, 1, one, 1.0)
    for name, count, pairs in measured:
        ratio = statistics.median(turn.rate / count / beside.rate for turn, beside in pairs)
        rows += figures(name, count, [turn for turn, _ in pairs], ratio)
    clients = max(turn.run.client_cores() for _, _, pairs in measured for turn, _ in pairs)
    return [*rows, Row("clients, at most", clients, "processors")]


def figures(name: str, count: int, turns: Sequence[Turn], ratio: float) -> list[Row]:
    """Medians over the turns."""
    rate = statistics.median(turn.rate for turn in turns)
    p50 = statistics.median(percentile(turn.run.latencies_s(), 50) for turn in turns)
    used = statistics.median(turn.used for turn in turns)
    failed = sum(len(turn.run.answers) - len(turn.run.good) for turn in turns)
    return [
        Row(f"{name}: requests a second", rate, "requests/s"),
        Row(f"{name}: for each replica", rate / count, "requests/s", ONE, ratio),
        Row(f"{name}: used by each replica", used, "processors"),
        Row(f"{name}: median latency", 1e3 * p50, "ms"),
        Row(f"{name}: answers other than 200", failed, "answers"),
    ]


def ended(replica: Server, front: Server, name: str, number: signal.Signals) -> list[Row]:
    """End a replica under load."""
    timer = threading.Timer(_ENDS_AFTER_S, os.kill, (replica.pid, number))
    timer.start()
    endpoint = generate_endpoint(front, MODEL)
    run = closed_loop(endpoint, mix(4096, LENGTHS), clients=CLIENTS * 3, duration_s=5.0)
    timer.join()
    lost = [answer.status for answer in run.answers if answer.status != 200]
    if not set(lost) <= ({502} if number == signal.SIGKILL else set()):
        raise Wrong(f"after {name}, answers had the status {set(lost)}")
    return [
        Row(f"{name} under load: answers", len(run.answers), "answers"),
        Row(f"{name} under load: answers other than 200", len(lost), "answers"),
    ]


# --- the same answers -----------------------------------------------------------------------------


def questions() -> list[tuple[str, dict[str, Any]]]:
    """Paths and bodies, of every kind of model."""
    asked: list[tuple[str, dict[str, Any]]] = []
    for seed in range(16):
        prompt = f"Chapter {seed} "
        options = {"max_tokens": 40, "seed": seed, "n": 2, "logprobs": 2}
        asked.append(("/generate", {"model": MODEL, "prompt": prompt, **options}))
        text = {"model": MODEL, "text": f"said Alice, {seed} times over", "tokens": True}
        asked.append(("/score", text))
        pair = {"model": "g2p-en", "source": "replica" * (1 + seed % 3), "beam_size": 1 + seed % 4}
        asked.append(("/translate", pair))
        asked.append(("/classify", {"model": "language-id", "text": f"Guten Tag, {seed} Mal"}))
    return asked


def compared(replicas: Sequence[Server], front: Server) -> list[Row]:
    """Compare all answers with the first replica's."""
    asked = questions()
    expected = [answer_of(replicas[0].url, *each) for each in asked]
    same = 0
    for replica in replicas[1:]:
        for each, known in zip(asked, expected, strict=True):
            if answer_of(replica.url, *each) != known:
                raise Wrong(f"two replicas answer differently: {each}")
            same += 1
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        # In batches of whatever else is under way, on whichever replica.
        together = list(pool.map(lambda each: answer_of(front.url, *each), asked * 4))
    if together != expected * 4:
        raise Wrong("an answer depends on what else is under way")
    handles = 0
    for number, replica in enumerate(replicas):
        begun = continued(replica, None)
        here, there = continued(replica, begun), continued(replicas[number - 1], begun)
        if without_states(here) != without_states(there):
            raise Wrong("a state handle continues differently in another replica")
        handles += 1
    return [
        Row("answers that are the same, bit for bit, one by one", same, "answers"),
        Row("answers that are the same, bit for bit, under load", len(together), "answers"),
        Row("state handles continued in another replica", handles, "handles"),
    ]


def continued(replica: Server, begun: dict[str, Any] | None) -> dict[str, Any]:
    """A text, or what follows on an earlier answer."""
    start = {"prompt": "Alice "} if begun is None else {"state": state_of(begun)}
    body = {"model": MODEL, "max_tokens": 20, "seed": 5, "return_state": True, **start}
    return posted(replica.url, "/generate", body)


def state_of(answer: dict[str, Any]) -> str:
    """The handle of an answer's only choice."""
    state: str = answer["results"][0]["choices"][0]["state"]
    return state


def without_states(answer: dict[str, Any]) -> Any:
    """The results; a handle has a time in it."""
    return [[{**x, "state": None} for x in each["choices"]] for each in answer["results"]]


def answer_of(url: str, path: str, body: dict[str, Any]) -> str:
    """The results as JSON: `usage` counts what a replica had cached."""
    return json.dumps(posted(url, path, body)["results"], sort_keys=True)


def posted(url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The answer to a request."""
    kind = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}{path}", json.dumps(body).encode(), kind)
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


if __name__ == "__main__":
    sys.exit(main())
