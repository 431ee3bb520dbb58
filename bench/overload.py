"""Overload: offer ten times the server's capacity and check latencies and 429s.

    python -m bench.overload --seconds 60

The requests come at random times (Poisson) from `bench.open_loop`, whose latencies end when the
kernel has the answer: with both processors busy, any client waits for its turn, and that wait is
not the server's. How much later than planned the requests were sent is reported.

The load used to come from h2load. Its connections start in groups, one every 50 ms, and each then
sends at a fixed rate. So at 570 requests a second, 29 came within the same millisecond, and most of
a rejection's latency was the wait for the other 28.

The exit status is 1 if one of these fails:

* every request is answered with 200 or 429;
* the p99 latency of the 200s is at most its bound: twice that of one client alone plus the queue's
  time limit (`max_queue_s`);
* every 429 has a Retry-After, and 99 % of them arrive within 20 ms.
"""

import argparse
import itertools
import json
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from bench.load import Endpoint, Request, closed_loop, percentile
from bench.open_loop import OpenRun, open_loop
from bench.plain_clients import posts
from bench.report import Row, say, table, write
from bench.requests import add_settings, described
from bench.server import ROOT, Server, unroll

MODEL = "alice-lstm"
CHOICES = 16
TOKENS = 256  # with 16 choices, the capacity is some tens of requests a second
QUEUE_REQUESTS = 32
QUEUE_S = 0.4  # of work ahead of a request, by the measured rate
CAPACITY_CLIENTS = 24  # what two threads run, plus half the queue: no request gets 429
TIMES = 10
REFUSED_WITHIN_S = 0.020
REFUSED_SHARE = 0.99  # of the 429s
CONNECTIONS = 400  # the server accepts 1,000; some 50 requests are under way


@dataclass(frozen=True, slots=True)
class Figure:
    """A row of the table, and whether it passes; None if it is reported but not judged."""

    row: Row
    good: bool | None = None


def main() -> int:
    """Measure, print and write `overload.json`; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.overload",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the overload lasts")
    add_settings(parser)
    parser.add_argument("--quick", action="store_true", help="five seconds")
    options = parser.parse_args()
    seconds = 5.0 if options.quick else options.seconds
    given = dict(options.set)
    settings: dict[str, object] = {
        "max_queue_rows": QUEUE_REQUESTS * CHOICES,
        "max_queue_s": QUEUE_S,
        "max_queue_requests": QUEUE_REQUESTS,
        **given,
    }
    logs = ROOT / "bench/.work/logs"
    with tempfile.TemporaryDirectory() as scratch:
        models = Path(scratch) / "models"
        shutil.copytree(ROOT / "models" / MODEL, models / MODEL)
        with unroll(models, logs / "overload.log", **settings) as server:
            figures = measure(server, seconds)
    rows = [figure.row for figure in figures]
    title = f"{TIMES} times the capacity for {seconds:g} s; settings: {described(given)}"
    say(table(rows))
    if not given and not options.quick:
        write("overload.json", title, rows)
    failed = [figure.row.name for figure in figures if figure.good is False]
    for name in failed:
        say(f"FAILED: {name}")
    return 1 if failed else 0


def measure(server: Server, seconds: float) -> list[Figure]:
    """Measure one client, a closed loop, and the overload."""
    endpoint = Endpoint(f"{server.url}/generate", lambda x: json.dumps(body_of(x.seed)).encode())
    requests = [Request("", TOKENS, seed) for seed in range(4096)]
    alone = closed_loop(endpoint, requests, clients=1, duration_s=5.0)
    alone_p99_s = percentile(alone.latencies_s(), 99)
    full = closed_loop(endpoint, requests, clients=CAPACITY_CLIENTS, duration_s=10.0)
    capacity = len(full.latencies_s()) / (full.end - full.begin)
    rate = TIMES * capacity
    limit_s = 2 * alone_p99_s + QUEUE_S
    say(f"one client p99 {alone_p99_s:.3f} s, capacity {capacity:.1f}/s, offered {rate:.0f}/s")
    run = open_loop(
        endpoint.url,
        posts(endpoint.url, (body_of(seed) for seed in itertools.count())),
        rate_per_s=rate,
        duration_s=seconds,
        connections=CONNECTIONS,
        server_pid=server.pid,
    )
    return [
        _told("one client alone, p50", percentile(alone.latencies_s(), 50) * 1e3, "ms"),
        _told("one client alone, p99", alone_p99_s * 1e3, "ms"),
        _told("capacity", capacity, "requests/s"),
        *judged(run, limit_s),
    ]


def body_of(seed: int) -> dict[str, object]:
    """The body of a request to `/generate`."""
    return {
        "model": MODEL,
        "prompt": "Alice was ",
        "max_tokens": TOKENS,
        "n": CHOICES,
        "seed": seed,
    }


def judged(run: OpenRun, limit_s: float) -> list[Figure]:
    """The figures of the overload; `limit_s` is the bound of the accepted requests' p99."""
    accepted = [x.latency_s for x in run.answers if x.status == 200]
    refusals = [x for x in run.answers if x.status == 429]
    refused = [x.latency_s for x in refusals]
    others = Counter(x.status for x in run.answers if x.status not in {200, 429})
    lost = run.sent + run.unsent - len(accepted) - len(refused)
    silent = sum(not x.has_retry_after for x in refusals)
    p99_s = percentile(accepted, 99)
    soon = sum(x < REFUSED_WITHIN_S for x in refused) / max(1, len(refused))
    late_ms = [x.late_s * 1e3 for x in run.answers]
    return [
        _told("offered", (run.sent + run.unsent) / run.span_s, "requests/s"),
        _told("sent later than planned, p50", percentile(late_ms, 50), "ms"),
        _told("sent later than planned, p99", percentile(late_ms, 99), "ms"),
        _told("processors of the client", run.client_cpu_s / run.span_s, "cores"),
        _told("processors of the server", run.server_cpu_s / run.span_s, "cores"),
        _judged("answered 200", len(accepted), "", good=bool(accepted)),
        _judged("refused with 429", len(refused), "", good=bool(refused)),
        _judged("429 without Retry-After", silent, "", good=silent == 0),
        *(_told(f"status {status}", count, "") for status, count in others.items()),
        _judged("lost, or of another status", lost, "", good=lost == 0),
        _told("accepted, p50", percentile(accepted, 50) * 1e3, "ms"),
        _told("accepted, p99", p99_s * 1e3, "ms"),
        _told("the bound of the accepted", limit_s * 1e3, "ms"),
        _judged("accepted, p99 over its bound", p99_s / limit_s, "", good=p99_s <= limit_s),
        *(_told(f"refused, p{x}", percentile(refused, x) * 1e3, "ms") for x in (50, 90, 99, 100)),
        _judged(
            f"refused in under {REFUSED_WITHIN_S * 1e3:g} ms",
            100 * soon,
            "%",
            good=soon >= REFUSED_SHARE,
        ),
    ]


def _told(name: str, value: float, unit: str) -> Figure:
    return Figure(Row(name, value, unit))


def _judged(name: str, value: float, unit: str, *, good: bool) -> Figure:
    return Figure(Row(name, value, unit), good)


if __name__ == "__main__":
    sys.exit(main())
