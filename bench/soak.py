"""Ten minutes of mixed traffic against one server: does anything grow?

    python -m bench.soak --minutes 10

Every ten seconds the server's resident memory, threads, file descriptors and rows are sampled. All
clients begin with what takes most memory at once. What is left of each series after the first two
minutes, in which caches and pools fill and the allocator finds its working set, gets a line by
least squares. It is flat where its slope is at most twice its bound and, less two standard errors,
within it:

* memory: 30 MiB an hour, in eight minutes 4 MiB; memory was seen to grow in steps of 3 to 9 MiB, so
  that less cannot be told from one step. At 20 requests a second it is 440 bytes a request.
* threads and file descriptors: 30 an hour, 4 in eight minutes, a third of the clients: connections
  come and go by as many. A leak of one in a thousand requests is 72 an hour.
* rows: none is in use when the clients have gone.

The exit status is 1 where something is not flat, an answer was not the one known for its request,
or a request failed. Every 20 s one of the models is reloaded, with a key that is made for the run.
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
import psutil

from bench.report import RESULTS, Row, say, table, write
from bench.server import ROOT, Server, unroll
from bench.soak_traffic import LANGUAGE_MODELS, PAIR_MODEL, Tally, Traffic
from service.api_keys import new_key

CLIENTS = 12
SAMPLE_S = 10.0
SETTLE_S = 120.0
RELOAD_S = 20.0
MOST_MEMORY_MIB_PER_HOUR = 30.0
MOST_COUNT_PER_HOUR = 30.0
_MIB = 2**20
# Caches that fill within the first two minutes; clients that stop reading are given up in seconds.
_SETTINGS = {"prefix_cache_bytes": _MIB, "pattern_cache_bytes": _MIB, "request_timeout_s": 8}


@dataclass(frozen=True, slots=True)
class Sample:
    """The server at one time."""

    at_s: float
    memory_mib: float
    threads: int
    file_descriptors: int
    rows: float


@dataclass(frozen=True, slots=True)
class Slope:
    """A line through a series, by the hour."""

    per_hour: float
    error: float  # one standard error
    most: float

    @property
    def flat(self) -> bool:
        """Whether it is within its bound, as far as its error lets that be told."""
        return self.per_hour - 2 * self.error <= self.most and self.per_hour <= 2 * self.most


def slope(times_s: Sequence[float], values: Sequence[float], most: float) -> Slope:
    """Least squares (Draper and Smith, chapter 1); infinite with fewer than three points."""
    if len(times_s) < 3:
        return Slope(float("inf"), 0.0, most)
    hours = np.asarray(times_s) / 3600.0
    centred = hours - hours.mean()
    spread = float(centred @ centred)
    per_hour = float(centred @ np.asarray(values)) / spread
    residuals = np.asarray(values) - np.mean(values) - per_hour * centred
    error = (float(residuals @ residuals) / (len(hours) - 2) / spread) ** 0.5
    return Slope(per_hour, error, most)


def main() -> int:
    """Soak, print the slopes, write them; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    given = parser.parse_args()
    secret, key = new_key("soak", "admin")
    with tempfile.TemporaryDirectory() as scratch:
        keys = Path(scratch) / "keys"
        keys.write_text(key.line())
        settings: dict[str, object] = {**_SETTINGS, "api_keys_file": keys}
        folder = Path(scratch) / "models"
        for name in (*LANGUAGE_MODELS, PAIR_MODEL):
            shutil.copytree(ROOT / "models" / name, folder / name)
        with unroll(folder, ROOT / "bench/.work/logs/soak.log", **settings) as server:
            soak = _Soak(server, given.minutes * 60.0, secret)
            asyncio.run(soak.run())
    return soak.report()


class _Soak:
    """One run: traffic, samples, reloads."""

    def __init__(self, server: Server, duration_s: float, admin_key: str) -> None:
        self._server = server
        self._duration_s = duration_s
        self._admin_key = admin_key
        self._process = psutil.Process(server.pid)
        self._samples: list[Sample] = []
        self._tally = Tally()
        self._reloads = 0
        self._rows_at_end = 0.0

    async def run(self) -> None:
        """Learn the answers, then everything at once; in the end all rows must be free."""
        connector = aiohttp.TCPConnector(limit=0)
        headers = {"Authorization": f"Bearer {self._admin_key}"}
        timeout = aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(
            connector=connector, headers=headers, timeout=timeout
        ) as session:
            traffic = Traffic(self._server.url, session, self._tally, self._admin_key)
            await traffic.learn()
            await traffic.crowd(CLIENTS)
            clients = [asyncio.create_task(traffic.client(seed)) for seed in range(CLIENTS)]
            reloads = asyncio.create_task(self._reload(session))
            begin = time.monotonic()
            while time.monotonic() < begin + self._duration_s:
                await asyncio.sleep(SAMPLE_S)
                self._samples.append(await self._sample(time.monotonic() - begin))
            traffic.ending.set()
            reloads.cancel()
            await asyncio.gather(*clients)
        # What a client left behind ends within a step, and takes a moment to be told.
        for _ in range(50):
            self._rows_at_end = await asyncio.to_thread(
                rows_in_use, self._server.url, self._admin_key
            )
            if not self._rows_at_end:
                break
            await asyncio.sleep(0.1)

    async def _sample(self, at_s: float) -> Sample:
        rows = await asyncio.to_thread(rows_in_use, self._server.url, self._admin_key)
        memory = self._process.memory_info().rss / _MIB
        sample = Sample(at_s, memory, self._process.num_threads(), self._process.num_fds(), rows)
        say(
            f"{at_s:5.0f} s: {memory:.1f} MiB, {sample.threads} threads, "
            f"{sample.file_descriptors} file descriptors, {rows:g} rows; "
            f"{self._tally.counts.total()} requests, {self._tally.counts['wrong']} wrong"
        )
        return sample

    async def _reload(self, session: aiohttp.ClientSession) -> None:
        names = (*LANGUAGE_MODELS, PAIR_MODEL)
        while True:
            await asyncio.sleep(RELOAD_S)
            name = names[self._reloads % len(names)]
            url = f"{self._server.url}/admin/models/{name}/reload"
            async with session.post(url) as answer:
                self._tally.note("reloads", good=answer.status == 200, told=answer.status)
            self._reloads += 1

    def report(self) -> int:
        """Print and write what came of it; 1 where something is not as it must be."""
        begin = min(SETTLE_S, self._duration_s / 3)
        late = [x for x in self._samples if x.at_s >= begin]
        times = [x.at_s for x in late]
        slopes = {
            "resident memory, MiB/h": slope(
                times, [x.memory_mib for x in late], MOST_MEMORY_MIB_PER_HOUR
            ),
            "threads, 1/h": slope(times, [x.threads for x in late], MOST_COUNT_PER_HOUR),
            "file descriptors, 1/h": slope(
                times, [x.file_descriptors for x in late], MOST_COUNT_PER_HOUR
            ),
        }
        rows = []
        for name, found in slopes.items():
            verdict = "flat" if found.flat else "NOT FLAT"
            say(f"{name:<28}{found.per_hour:>9.1f} ± {found.error:<7.1f} {verdict}")
            rows.append(
                Row(name, found.per_hour, f"± {found.error:.1f}", f"at most {found.most:g}")
            )
        wrong = self._tally.counts.pop("wrong", 0)
        rows += [Row(name, count, "") for name, count in sorted(self._tally.counts.items())]
        rows.append(Row("answers that are not the known one, and failures", wrong, ""))
        rows.append(Row("rows in use at the end", self._rows_at_end, ""))
        say(table(rows))
        for mistake in self._tally.mistakes:
            say(mistake[:400])
        write("soak.json", f"Soak of {self._duration_s / 60:g} minutes", rows)
        file = RESULTS / "soak.json"
        document = json.loads(file.read_text()) | {"samples": [asdict(x) for x in self._samples]}
        file.write_text(json.dumps(document, indent=1) + "\n")
        good = all(x.flat for x in slopes.values()) and not wrong and not self._rows_at_end
        say("flat" if good else "NOT as it must be")
        return 0 if good else 1


def rows_in_use(url: str, key: str) -> float:
    """The sum of `unroll_rows` of `/metrics`."""
    request = urllib.request.Request(f"{url}/metrics", headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(x.rpartition(" ")[2]) for x in lines if x.startswith("unroll_rows{"))


if __name__ == "__main__":
    sys.exit(main())
