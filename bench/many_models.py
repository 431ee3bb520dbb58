"""A thousand small models in one folder, opened at their first use within a budget of memory.

    python -m bench.many_models --models 1000 --budget-mib 512 --workers 1

Shows the start, the first request to each model (a pass over all, so that most are closed again to
make room), requests to a model that is open, memory beside the budget, and what lists and metrics
take. `--estimate` opens each bundle of models/ several times in this process instead, and shows
what an open one takes beside the estimate.
"""

import argparse
import asyncio
import gc
import json
import random
import shutil
import sys
import time
from pathlib import Path

import httpx
import psutil

from bench.models import WORK, ensure
from bench.server import ROOT, unroll
from service.bundle.store import MANIFEST_FILE, read_bundle, read_manifest
from service.settings import Settings
from service.tasks.cards import Card
from service.tasks.kinds import Surroundings, open_engine
from service.tasks.opening import return_memory

MIB = 2**20
_TEXT = "held out by nobody"
_STEADY = 500
_COPIES = 8


def copies(count: int, layers: int, hidden: int) -> Path:
    """A folder with so many copies of a model under different names, kept for the next time."""
    name = ensure(WORK, layers, hidden)
    source = WORK / "models" / name / name
    folder = WORK / f"many-{name}-{count}"
    if folder.exists():
        return folder
    scratch = folder.with_name(f"{folder.name}.writing")
    shutil.rmtree(scratch, ignore_errors=True)
    manifest = read_manifest(source)
    files = [file for file in source.iterdir() if file.name != MANIFEST_FILE]
    for number in range(count):
        copy = scratch / f"m{number:05d}"
        copy.mkdir(parents=True)
        for file in files:
            shutil.copy(file, copy / file.name)
        renamed = manifest.model_copy(update={"name": copy.name})
        (copy / MANIFEST_FILE).write_text(renamed.model_dump_json(indent=2) + "\n")
    scratch.rename(folder)
    return folder


def memory_mib(pid: int) -> tuple[float, float]:
    """What the server's processes take, and what their trial processes take (PSS)."""
    of_server = of_trials = 0.0
    parent = psutil.Process(pid)
    for process in (parent, *parent.children(recursive=True)):
        taken = process.memory_full_info().pss / MIB
        if any("trial_process" in part for part in process.cmdline()):
            of_trials += taken
        else:
            of_server += taken
    return of_server, of_trials


def processor_s(pid: int) -> float:
    """Processor time of the server's processes so far, those of its trials included."""
    parent = psutil.Process(pid)
    family = (parent, *parent.children(recursive=True))
    return sum(sum(process.cpu_times()[:2]) for process in family)


def asked_ms(http: httpx.Client, model: str) -> float:
    """The time of a request. Raises HTTPStatusError if it fails."""
    began = time.perf_counter()
    http.post("/score", json={"model": model, "text": _TEXT}).raise_for_status()
    return 1e3 * (time.perf_counter() - began)


def _row(what: str, value: str) -> None:
    sys.stdout.write(f"| {what} | {value} |\n")
    sys.stdout.flush()


def _spread(times: list[float]) -> str:
    times = sorted(times)
    p50, p99 = times[len(times) // 2], times[min(len(times) - 1, int(0.99 * len(times)))]
    return f"{p50:.1f}, {p99:.1f}, {times[-1]:.1f}"


def measure(options: argparse.Namespace) -> None:
    """Serve the folder, and print a table."""
    folder = copies(options.models, *options.shape)
    names = [x.name for x in sorted(folder.iterdir())]
    random.Random(1).shuffle(names)
    sys.stdout.write("| figure | value |\n| --- | --- |\n")
    began = time.perf_counter()
    log = WORK / "many_models.log"
    budget = options.budget_mib * MIB
    with (
        unroll(
            folder, log, workers=options.workers, models_bytes=budget, log_requests=False
        ) as server,
        httpx.Client(base_url=server.url, timeout=60) as http,
    ):
        _row("start, s", f"{time.perf_counter() - began:.1f}")
        base, _ = memory_mib(server.pid)
        first, spent_s = [], processor_s(server.pid)
        for name in names:
            # A new connection each, so that every process is asked.
            with httpx.Client(base_url=server.url, timeout=60) as other:
                first.append(asked_ms(other, name))
        _row("first request to each model: p50, p99, longest, ms", _spread(first))
        spent_s = processor_s(server.pid) - spent_s
        _row("processor time of a first request, ms", f"{1e3 * spent_s / len(names):.0f}")
        _row("the same model again: p50, p99, longest, ms", _spread(_again(http, names[-1])))
        after, trials = memory_mib(server.pid)
        _row("memory before, after, difference beside the budget, MiB",
             f"{base:.0f}, {after:.0f}, {after - base:.0f} of {options.budget_mib}")  # fmt: skip
        _row("memory of trial processes, MiB", f"{trials:.0f}")
        numbers = http.get("/metrics").text.splitlines()
        for name in ("unroll_models_open", "unroll_models_open_bytes"):
            _row(name, next(x.split()[1] for x in numbers if x.startswith(f"{name} ")))
        closed = [x for x in numbers if x.startswith('unroll_model_loads_total{result="closed"')]
        _row("closed to make room", closed[0].split()[1] if closed else "0")
        _row("series in /metrics", str(sum(not x.startswith("#") for x in numbers)))
        began = time.perf_counter()
        page = http.get("/models")
        _row("a page of /models: ms, bytes",
             f"{1e3 * (time.perf_counter() - began):.1f}, {len(page.content)}")  # fmt: skip


def _again(http: httpx.Client, name: str) -> list[float]:
    for _ in range(20):
        asked_ms(http, name)  # every process has it open
    return [asked_ms(http, name) for _ in range(_STEADY)]


async def estimate() -> None:
    """Print what an open bundle takes beside the estimate, for every bundle that ships."""
    settings = Settings(engine_threads=1)
    sys.stdout.write("| bundle | estimate, MiB | measured, MiB |\n| --- | --- | --- |\n")
    for folder in sorted(x for x in (ROOT / "models").iterdir() if x.is_dir()):
        surroundings = Surroundings(settings=settings, threads=1)
        engines = [open_engine(read_bundle(folder), surroundings)]  # loads what is loaded once
        engines[0].start()
        return_memory()
        before = psutil.Process().memory_info().rss
        for _ in range(_COPIES):
            engines.append(open_engine(read_bundle(folder), surroundings))
            engines[-1].start()
        return_memory()
        taken = (psutil.Process().memory_info().rss - before) / _COPIES
        card = Card.of_engine(engines[0])
        name, estimated = folder.name, card.open_bytes / MIB
        sys.stdout.write(f"| {name} | {estimated:.1f} | {taken / MIB:.1f} |\n")
        for engine in engines:
            await engine.stop()
        engines.clear()
        gc.collect()


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="bench.many_models", description=__doc__)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--budget-mib", type=int, default=512)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--shape", type=json.loads, default=[1, 128], help="[layers, units]")
    parser.add_argument("--estimate", action="store_true")
    options = parser.parse_args()
    if options.estimate:
        asyncio.run(estimate())
    else:
        measure(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
