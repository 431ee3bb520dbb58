"""`python -m bench.spread`: how often three replicas open models, shared out evenly and by model.

60 models, and memory for 25 open ones in each of three replicas behind nginx. Requests name a model
at random. Shared out evenly, every replica is asked for all 60; by model, for about 20.
"""

import argparse
import concurrent.futures
import json
import os
import random
import shutil
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.models import WORK
from bench.nginx import nginx
from bench.report import RESULTS, Row, machine, say, table, write
from bench.server import ROOT, Server, unroll

MODEL = "dates-iso"
MODELS = 60
OPEN = 25
REPLICAS = 3
REQUESTS = 400
CLIENTS = 4
SPREADS = ("even", "by-model")


def main() -> None:
    """Measure, print and write `spread.json`."""
    argparse.ArgumentParser(
        prog="python -m bench.spread",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    title = f"{MODELS} models, {REPLICAS} replicas with memory for {OPEN} each, {REQUESTS} requests"
    say(f"{machine()}; {title}")
    folder = copies()
    budget_bytes = int((OPEN + 0.5) * bytes_of_one(folder))
    rows = [row for spread in SPREADS for row in rows_of(spread, folder, budget_bytes)]
    say(table(rows))
    write("spread.json", title, rows)
    say(f"written: {RESULTS / 'spread.json'}")


def name_of(number: int) -> str:
    """The name of a copy."""
    return f"copy-{number:02d}"


def copies() -> Path:
    """A folder with copies of a bundle under other names."""
    folder = WORK / "spread-models"
    shutil.rmtree(folder, ignore_errors=True)
    for number in range(MODELS):
        copy = shutil.copytree(ROOT / "models" / MODEL, folder / name_of(number))
        manifest = json.loads((copy / "manifest.json").read_text())
        manifest["name"] = name_of(number)
        (copy / "manifest.json").write_text(json.dumps(manifest))
    return folder


def bytes_of_one(folder: Path) -> float:
    """Memory of an open model, by the server's estimate."""
    settings = {"workers": 1, "engine_threads": 1, "models_bytes": 2**30}
    with unroll(folder, WORK / "logs" / "spread.log", **settings) as server:
        ask(server.url, 0)
        return number_of(server, "unroll_models_open_bytes")


def rows_of(spread: str, folder: Path, budget_bytes: int) -> list[Row]:
    """Ask fresh replicas for random models."""
    settings = {"workers": 1, "engine_threads": 1, "models_bytes": budget_bytes}
    with ExitStack() as stack:
        replicas = []
        for number in range(REPLICAS):
            log = WORK / "logs" / f"spread-{number}.log"
            replicas.append(
                stack.enter_context(unroll(folder, log, log_level="warning", **settings))
            )
        addresses = [each.url.removeprefix("http://") for each in replicas]
        work = WORK / f"nginx-{os.getpid()}-{spread}"
        front = stack.enter_context(nginx(addresses, work, spread=spread))
        chosen = random.Random(1).choices(range(MODELS), k=REQUESTS)
        begun = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(lambda number: ask(front.url, number), chosen))
        spent_s = time.perf_counter() - begun
        opened = [number_of(each, "unroll_model_open_seconds_count") for each in replicas]
        held = [number_of(each, "unroll_models_open") for each in replicas]
    return [
        Row(f"{spread}: models opened", sum(opened), "times"),
        Row(f"{spread}: requests for an open model", 1 - sum(opened) / REQUESTS, "of all"),
        Row(f"{spread}: open at the end, in the fullest replica", max(held), "models"),
        Row(f"{spread}: requests a second", REQUESTS / spent_s, "requests/s"),
    ]


def ask(url: str, number: int) -> None:
    """Send a request to a model, named in the body and in the header."""
    name = name_of(number)
    headers = {"Content-Type": "application/json", "X-Unroll-Model": name}
    body = json.dumps({"model": name, "source": "July 4, 1862", "beam_size": 1}).encode()
    request = urllib.request.Request(f"{url}/translate", body, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        answer.read()


def number_of(server: Server, name: str) -> float:
    """A number in /metrics."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as answer:
        lines: Sequence[str] = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.split()[0] == name)


if __name__ == "__main__":
    main()
