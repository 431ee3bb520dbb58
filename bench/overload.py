"""Overload: offer ten times the server's capacity and check latencies and 429s.

    python -m bench.overload --seconds 60

The load comes from h2load (Debian: `apt-get install nghttp2-client`) over HTTP/1.1. Each connection
sends at fixed times (`--rps`), and the connections start one after another, so that together they
have a constant rate. There are enough of them that each has its answer before it sends again, which
makes an open loop. The log of h2load has the time, status and latency of every answer. hey and wrk,
also packaged, cannot do this: wrk keeps no rate, and the workers of hey all send at the same time.

h2load does not log headers. So a shorter run of `bench.load`'s open loop (Poisson) at the same rate
checks the Retry-After of every 429. Without h2load, it does everything. It is a Python process on
the server's cores, so its latencies include its own delays: with h2load they are reported but not
judged.

The exit status is 1 if one of these fails:

* every request is answered with 200 or 429;
* the p99 latency of the 200s is at most twice that of one client alone plus the queue's time limit
  (`max_queue_s`);
* every 429 has a Retry-After and arrives within 20 ms.
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.load import Endpoint, Request, Run, closed_loop, cpu_s, open_loop, percentile
from bench.report import Row, say, table, write
from bench.server import ROOT, Server, unroll

MODEL = "alice-lstm"
CHOICES = 16
TOKENS = 256  # with 16 choices, the capacity is some tens of requests a second
QUEUE_REQUESTS = 32
QUEUE_S = 0.4  # of work ahead of a request, by the measured rate
CAPACITY_CLIENTS = 24  # what two threads run, plus half the queue: no request gets 429
TIMES = 10
REFUSED_WITHIN_S = 0.020
_PERIOD_MS = 50
_MOST_CONNECTIONS = 900  # the server accepts 1,000
_MOST_IDLE_S = 4.0  # and closes one after 5 s without a request, which h2load counts as failures


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers of an open loop: latencies in seconds, by status."""

    generator: str
    sent: int
    span_s: float
    accepted_s: list[float]
    refused_s: list[float]
    others: Counter[int]
    server_cores: float

    @property
    def lost(self) -> int:
        """The number of requests that were not answered with 200 or 429."""
        return self.sent - len(self.accepted_s) - len(self.refused_s)


@dataclass(frozen=True, slots=True)
class Figure:
    """A row of the table, and whether it passes; None if it is reported but not judged."""

    row: Row
    good: bool | None = None


def main() -> int:
    """Measure, print and write `overload.json`; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the overload lasts")
    parser.add_argument("--niceness", type=int, default=0, help="of h2load")
    given = parser.parse_args()
    settings: dict[str, object] = {
        "max_queue_rows": QUEUE_REQUESTS * CHOICES,
        "max_queue_s": QUEUE_S,
    }
    settings["max_queue_requests"] = QUEUE_REQUESTS
    logs = ROOT / "bench/.work/logs"
    with tempfile.TemporaryDirectory() as scratch:
        models = Path(scratch) / "models"
        shutil.copytree(ROOT / "models" / MODEL, models / MODEL)
        with unroll(models, logs / "overload.log", **settings) as server:
            figures = measure(server, Path(scratch), given.seconds, given.niceness)
    rows = [figure.row for figure in figures]
    write("overload.json", f"{TIMES} times the capacity for {given.seconds:g} s", rows)
    say(table(rows))
    failed = [figure.row.name for figure in figures if figure.good is False]
    for name in failed:
        say(f"FAILED: {name}")
    return 1 if failed else 0


def measure(server: Server, scratch: Path, seconds: float, niceness: int) -> list[Figure]:
    """Measure one client, a closed loop, and the overload with every available generator."""
    endpoint = Endpoint(f"{server.url}/generate", body_of)
    requests = [Request("Alice was ", TOKENS, seed) for seed in range(4096)]
    alone = closed_loop(endpoint, requests, clients=1, duration_s=5.0)
    alone_p99_s = percentile(alone.latencies_s(), 99)
    full = closed_loop(endpoint, requests, clients=CAPACITY_CLIENTS, duration_s=10.0)
    capacity = len(full.latencies_s()) / (full.end - full.begin)
    rate = TIMES * capacity
    limit_s = 2 * alone_p99_s + QUEUE_S
    say(f"one client p99 {alone_p99_s:.3f} s, capacity {capacity:.1f}/s, offered {rate:.0f}/s")
    figures = [
        _told("one client alone, p50", percentile(alone.latencies_s(), 50) * 1e3, "ms"),
        _told("one client alone, p99", alone_p99_s * 1e3, "ms"),
        _told("capacity", capacity, "requests/s"),
    ]
    if shutil.which("h2load"):
        answers = by_h2load(
            server, scratch, requests[0],
            rate=rate, limit_s=limit_s, seconds=seconds, niceness=niceness,
        )  # fmt: skip
        figures += judged(answers, limit_s)
        seconds /= 4
    run = open_loop(
        endpoint,
        requests,
        rate_per_s=rate,
        duration_s=seconds,
        warm_up_s=0.0,
        server_pid=server.pid,
    )
    answers = of_run(run)
    # As the only generator, it has the only latencies to judge.
    alone_here = len(figures) == 3
    figures += judged(answers, limit_s, latencies=alone_here)
    refusals = [x for x in run.answers if x.status == 429]
    silent = sum(not x.retry_after_s for x in refusals)
    figures.append(_judged("429 without Retry-After", silent, "", good=silent == 0))
    return figures


def body_of(request: Request) -> bytes:
    """The body of a request to `/generate`."""
    return json.dumps(
        {
            "model": MODEL,
            "prompt": request.prompt,
            "max_tokens": request.max_tokens,
            "n": CHOICES,
            "seed": request.seed,
        }
    ).encode()


def by_h2load(
    server: Server,
    scratch: Path,
    request: Request,
    *,
    rate: float,
    limit_s: float,
    seconds: float,
    niceness: int,
) -> Answers:
    """Send at a constant rate from as many connections as that needs."""
    body, log = scratch / "body.json", scratch / "h2load.log"
    body.write_bytes(body_of(request))
    between_s = min(_MOST_IDLE_S, limit_s * 1.5)
    connections = min(_MOST_CONNECTIONS, math.ceil(rate * between_s))
    count = max(1, round(rate * seconds / connections)) * connections
    command = ["nice", "-n", str(niceness), "h2load", "--h1", f"--data={body}"]
    command += ["-H", "Content-Type: application/json", f"--log-file={log}"]
    command += ["-c", str(connections), "-n", str(count), f"--rps={rate / connections:.6f}"]
    begun = max(1, round(rate * _PERIOD_MS / 1000))
    command += ["-r", str(begun), f"--rate-period={_PERIOD_MS}ms", f"{server.url}/generate"]
    before = cpu_s(server.pid)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=seconds * 2 + 120)
    used = cpu_s(server.pid) - before
    lines = [[int(x) for x in line.split()[:3]] for line in log.read_text().splitlines()]
    begins = [line[0] / 1e6 for line in lines]
    span_s = max(begins) - min(begins)
    return _answers("h2load", count, span_s, [(x[1], x[2] / 1e6) for x in lines], used / span_s)


def of_run(run: Run) -> Answers:
    """The answers of a run of `bench.load`."""
    found = [(x.status, x.latency_s) for x in run.answers]
    span_s = run.end - run.begin
    return _answers("bench.load", len(found), span_s, found, run.server_cpu_s / span_s)


def _answers(
    generator: str, sent: int, span_s: float, found: Sequence[tuple[int, float]], cores: float
) -> Answers:
    by_status: dict[int, list[float]] = {}
    for status, latency_s in found:
        by_status.setdefault(status, []).append(latency_s)
    accepted, refused = by_status.pop(200, []), by_status.pop(429, [])
    others = Counter({status: len(latencies) for status, latencies in by_status.items()})
    return Answers(generator, sent, span_s, accepted, refused, others, cores)


def judged(answers: Answers, limit_s: float, *, latencies: bool = True) -> list[Figure]:
    """The figures of one generator; without `latencies`, these are reported but not judged."""
    name = answers.generator
    accepted, refused = answers.accepted_s, answers.refused_s
    p99_s = percentile(accepted, 99)
    slowest_s = max(refused, default=float("nan"))
    soon = sum(x < REFUSED_WITHIN_S for x in refused) / max(1, len(refused))
    figures = [
        _told(f"{name}: offered", answers.sent / answers.span_s, "requests/s"),
        _told(f"{name}: sent", answers.sent, ""),
        _judged(f"{name}: answered 200", len(accepted), "", good=bool(accepted)),
        _judged(f"{name}: refused with 429", len(refused), "", good=bool(refused)),
        _judged(f"{name}: lost, or of another status", answers.lost, "", good=answers.lost == 0),
    ]
    figures += [_told(f"{name}: status {x}", count, "") for x, count in answers.others.items()]
    figures += [
        _told(f"{name}: processors of the server", answers.server_cores, "cores"),
        _told(f"{name}: accepted, p50", percentile(accepted, 50) * 1e3, "ms"),
        Figure(
            Row(f"{name}: accepted, p99", p99_s * 1e3, "ms", f"at most {limit_s * 1e3:.0f} ms"),
            p99_s <= limit_s if latencies else None,
        ),
    ]
    figures += [
        _told(f"{name}: refused, {label}", value * 1e3, "ms")
        for label, value in (
            ("p50", percentile(refused, 50)), ("p99", percentile(refused, 99)), ("max", slowest_s),
        )
    ]  # fmt: skip
    soon_name = f"{name}: refused in under {REFUSED_WITHIN_S * 1e3:g} ms"
    good = slowest_s < REFUSED_WITHIN_S if latencies else None
    return [*figures, Figure(Row(soon_name, 100 * soon, "%"), good)]


def _told(name: str, value: float, unit: str) -> Figure:
    return Figure(Row(name, value, unit))


def _judged(name: str, value: float, unit: str, *, good: bool) -> Figure:
    return Figure(Row(name, value, unit), good)


if __name__ == "__main__":
    sys.exit(main())
