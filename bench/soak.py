"""Soak test: forty thousand random requests to one server, to see whether anything grows.

    python -m bench.soak --requests 40000 --minutes 30

There are requests of every kind. Most are random (`bench.soak_requests`), some have known answers
(`bench.soak_traffic`), and some clients disconnect in the middle or stop reading. Every 20 s, one
of the models is reloaded with an API key made for the run. Every five seconds, the server's
resident memory, threads, file descriptors and rows are sampled, in all its processes together.
During the first 5,000 requests, caches and pools fill and the allocator finds its working set.
After that, a line is fitted by least squares. A series is flat if its slope minus two standard
errors is within its limit and the slope itself within twice the limit:

* memory: MOST_MIB in 10,000 requests. In addition, its mean over the last tenth of the run is at
  most MOST_GROWTH_MIB above that around the 5,000th request.
* threads and file descriptors: four in 10,000 requests, a third of the clients.
* rows: none is in use after the clients have gone.

The exit status is 1 if a series is not flat, an answer was wrong for its request, a request failed,
or a kind of request never got a good answer.
"""

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp
import numpy as np

from bench.label_models import ensure
from bench.load import workers_of
from bench.report import RESULTS, Row, say, table, write
from bench.server import ROOT, Server, unroll
from bench.soak_tally import Tally
from bench.soak_traffic import CLASSIFIERS, LANGUAGE_MODELS, PAIR_MODELS, TAGGERS, Traffic
from service.http.api_keys import new_key

WORK = ROOT / "bench" / ".work"
CLIENTS = 12
SAMPLE_S = 5.0
SETTLE_REQUESTS = 5000
RELOAD_S = 20.0
MOST_MIB = 8.0
MOST_GROWTH_MIB = 64.0
MOST_COUNT = 4.0
SHOWN_REQUESTS = (5000, 10_000, 20_000, 30_000, 40_000)
_PER = 10_000
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample of the server's resources."""

    at_s: float
    requests: int
    memory_mib: float
    threads: int
    file_descriptors: int
    rows: float


@dataclass(frozen=True, slots=True)
class Slope:
    """The slope of a line through a series, for 10,000 requests."""

    slope: float
    error: float  # one standard error, as if samples were independent
    most: float

    @property
    def flat(self) -> bool:
        """Whether the slope is within its limit, allowing for its error."""
        return self.slope - 2 * self.error <= self.most and self.slope <= 2 * self.most


def slope(requests: Sequence[float], values: Sequence[float], most: float) -> Slope:
    """Fit a line by least squares (Draper and Smith, chapter 1); infinite below three points."""
    if len(requests) < 3:
        return Slope(float("inf"), 0.0, most)
    places = np.asarray(requests) / _PER
    centred = places - places.mean()
    spread = float(centred @ centred)
    found = float(centred @ np.asarray(values)) / spread
    residuals = np.asarray(values) - np.mean(values) - found * centred
    error = (float(residuals @ residuals) / (len(places) - 2) / spread) ** 0.5
    return Slope(found, error, most)


def main() -> int:
    """Run the soak test, print and write the slopes; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=40_000)
    parser.add_argument(
        "--minutes", type=float, default=30.0, help="stop after this time, finished or not"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--cache-mib",
        type=int,
        default=2,
        help="memory for prefixes and for patterns, each; small, so that filling the caches "
        "does not look like growth; the service's own defaults are 64 and 8",
    )
    given = parser.parse_args()
    secret, key = new_key("soak", "admin")
    with tempfile.TemporaryDirectory() as scratch:
        keys = Path(scratch) / "keys"
        keys.write_text(key.line())
        settings: dict[str, object] = {
            "api_keys_file": keys,
            "prefix_cache_bytes": given.cache_mib * _MIB,
            "pattern_cache_bytes": given.cache_mib * _MIB,
            # Short, so that clients that stop reading are disconnected soon.
            "request_timeout_s": 60,
            "log_level": "warning",
        }
        folder = Path(scratch) / "models"
        for name in (*LANGUAGE_MODELS, *PAIR_MODELS):
            shutil.copytree(ROOT / "models" / name, folder / name)
        for name in (*CLASSIFIERS, *TAGGERS):
            shutil.copytree(ensure(WORK, name), folder / name)
        with unroll(folder, WORK / "logs" / "soak.log", **settings) as server:
            soak = _Soak(server, given.requests, given.minutes * 60.0, given.seed, secret)
            asyncio.run(soak.run())
    return soak.report()


class _Soak:
    """One run: its traffic, samples and reloads."""

    def __init__(
        self, server: Server, requests: int, most_s: float, seed: int, admin_key: str
    ) -> None:
        self._server = server
        self._requests = requests
        self._most_s = most_s
        self._seed = seed
        self._admin_key = admin_key
        self._samples: list[Sample] = []
        self._tally = Tally()
        self._mistakes_said = 0
        self._reloads = 0
        self._rows_at_end = 0.0
        self._failures: dict[str, float] = {}
        self._never_good: list[str] = []

    async def run(self) -> None:
        """Learn the known answers, then send everything; all rows must be free at the end."""
        connector = aiohttp.TCPConnector(limit=0)
        headers = {"Authorization": f"Bearer {self._admin_key}"}
        timeout = aiohttp.ClientTimeout(total=90)
        async with aiohttp.ClientSession(
            connector=connector, headers=headers, timeout=timeout
        ) as session:
            traffic = Traffic(self._server.url, session, self._tally, self._admin_key)
            await traffic.learn()
            begin = time.monotonic()
            self._samples.append(await self._sample(0.0))
            await traffic.crowd(CLIENTS)
            seeds = range(self._seed * CLIENTS, (self._seed + 1) * CLIENTS)
            clients = [asyncio.create_task(traffic.client(seed)) for seed in seeds]
            reloads = asyncio.create_task(self._reload(session))
            while (
                self._tally.requests < self._requests
                and time.monotonic() < begin + self._most_s
                and not any(client.done() for client in clients)
            ):
                await asyncio.sleep(SAMPLE_S)
                self._samples.append(await self._sample(time.monotonic() - begin))
            traffic.ending.set()
            reloads.cancel()
            await asyncio.gather(*clients)
            kinds = self._tally.counts.keys() & traffic.random.good.keys()
            self._never_good = [x for x in sorted(kinds - {"bad"}) if not traffic.random.good[x]]
        # The work of a client that left ends within a step, but the metrics show it a bit later.
        for _ in range(50):
            numbers = await self._numbers()
            self._rows_at_end = rows_in(numbers)
            if not self._rows_at_end:
                break
            await asyncio.sleep(0.1)
        self._failures = failures_in(numbers)

    async def _numbers(self) -> dict[str, float]:
        return await asyncio.to_thread(numbers_of, self._server.url, self._admin_key)

    async def _sample(self, at_s: float) -> Sample:
        rows = rows_in(await self._numbers())
        processes = workers_of(self._server.pid)
        # Workers share the pages of their models: each has its part of them.
        memory = sum(x.memory_full_info().pss for x in processes) / _MIB
        threads = sum(x.num_threads() for x in processes)
        descriptors = sum(x.num_fds() for x in processes)
        sample = Sample(at_s, self._tally.requests, memory, threads, descriptors, rows)
        say(
            f"{at_s:5.0f} s, {sample.requests:>6} requests: {memory:.1f} MiB, {threads} threads, "
            f"{descriptors} file descriptors, {rows:g} rows, {self._tally.wrong} wrong"
        )
        for mistake in self._tally.mistakes[self._mistakes_said :]:
            say(mistake[:700])
            self._mistakes_said += 1
        return sample

    async def _reload(self, session: aiohttp.ClientSession) -> None:
        names = (*LANGUAGE_MODELS, *PAIR_MODELS, *CLASSIFIERS, *TAGGERS)
        while True:
            await asyncio.sleep(RELOAD_S)
            name = names[self._reloads % len(names)]
            url = f"{self._server.url}/admin/models/{name}/reload"
            async with session.post(url) as answer:
                self._tally.note("reloads", good=answer.status == 200, told=answer.status)
            self._reloads += 1

    def report(self) -> int:
        """Print and write the results; return 1 if a check failed."""
        late = [x for x in self._samples if x.requests >= SETTLE_REQUESTS]
        places = [x.requests for x in late]
        slopes = {
            "resident memory, MiB": slope(places, [x.memory_mib for x in late], MOST_MIB),
            "threads": slope(places, [x.threads for x in late], MOST_COUNT),
            "file descriptors": slope(places, [x.file_descriptors for x in late], MOST_COUNT),
        }
        rows = [Row("resident memory at the start", self._samples[0].memory_mib, "MiB")]
        shown = [at for at in SHOWN_REQUESTS if at <= self._samples[-1].requests]
        rows += [
            Row(f"resident memory at {at:,} requests", self._memory_at(at), "MiB") for at in shown
        ]
        for name, found in slopes.items():
            verdict = "flat" if found.flat else "NOT FLAT"
            label = f"{name} in {_PER:,} requests, after {SETTLE_REQUESTS:,}"
            say(f"{label:<60}{found.slope:>7.1f} ± {found.error:<5.1f} {verdict}")
            rows.append(Row(label, found.slope, f"± {found.error:.1f}", f"at most {found.most:g}"))
        growth = self._growth(late)
        rows.append(
            Row(
                f"the last tenth over that at {SETTLE_REQUESTS:,}",
                growth,
                "MiB",
                f"at most {MOST_GROWTH_MIB:g}",
            )
        )
        rows += [Row(name, count, "") for name, count in sorted(self._tally.counts.items())]
        rows.append(Row("requests in all", self._tally.requests, ""))
        rows.append(Row("minutes", self._samples[-1].at_s / 60, ""))
        rows.append(Row("answers that may not be, and failures", self._tally.wrong, ""))
        rows += [Row(name, count, "") for name, count in self._failures.items()]
        rows.append(Row("rows in use at the end", self._rows_at_end, ""))
        say(table(rows))
        for mistake in self._tally.mistakes[self._mistakes_said :]:
            say(mistake[:700])
        for kind in self._never_good:
            say(f"never got a good answer: {kind}")
        write("soak.json", f"Soak of {self._tally.requests:,} requests", rows)
        file = RESULTS / "soak.json"
        document = json.loads(file.read_text()) | {"samples": [asdict(x) for x in self._samples]}
        file.write_text(json.dumps(document, indent=1) + "\n")
        good = (
            all(x.flat for x in slopes.values())
            and growth <= MOST_GROWTH_MIB
            and not self._tally.wrong
            and not self._failures
            and not self._never_good
            and not self._rows_at_end
        )
        say("passed" if good else "FAILED")
        return 0 if good else 1

    def _memory_at(self, requests: int) -> float:
        """The mean memory of the samples around that number of requests."""
        near = [x.memory_mib for x in self._samples if abs(x.requests - requests) <= _PER / 20]
        closest = min(self._samples, key=lambda x: abs(x.requests - requests))
        return float(np.mean(near)) if near else closest.memory_mib

    def _growth(self, late: Sequence[Sample]) -> float:
        """The growth of memory from SETTLE_REQUESTS to the end; infinite without later samples."""
        last = [x.memory_mib for x in late if x.requests >= 0.9 * self._samples[-1].requests]
        if not last:
            return float("inf")
        return float(np.mean(last)) - self._memory_at(SETTLE_REQUESTS)


def numbers_of(url: str, key: str) -> dict[str, float]:
    """The values of `/metrics` by series."""
    request = urllib.request.Request(f"{url}/metrics", headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}


def rows_in(numbers: dict[str, float]) -> float:
    """The number of rows running or queued, over all models."""
    return sum(value for name, value in numbers.items() if name.startswith("unroll_rows{"))


def failures_in(numbers: dict[str, float]) -> dict[str, float]:
    """The 5xx answers that the server counted, except 504: clients ask for short deadlines."""
    return {
        name: value
        for name, value in numbers.items()
        if name.startswith("unroll_requests_total{")
        and 'status="5' in name
        and 'status="504"' not in name
    }


if __name__ == "__main__":
    sys.exit(main())
