"""`python -m bench.ray_serve`: what a request costs behind Ray Serve's two proxies.

    bare       `python -m service`, one process with one engine thread
    default    one replica of docker/ray/serve.yaml behind Ray's own proxy, written in Python
    HAProxy    the same with RAY_SERVE_ENABLE_HA_PROXY=1: HAProxy sends to the replica itself

`/score` of 19 characters by `alice-lstm`: the median time of one client; requests a second of 16;
and the processor time that one of these takes on the server's node, without what the node spends
idle. Server and clients are on nodes of their own (network namespaces of this machine: needs root,
and Ray from `make .venv/cluster/.done`), and every answer is compared with the bare service's.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

from bench.report import RESULTS, Row, machine, say, table, write
from tests.cluster import ray_cluster
from tests.cluster.load import ROOT, Case, Outcome, Plan, ask, known, sending
from tests.cluster.namespaces import Node, nodes

_BODY = json.dumps({"model": "alice-lstm", "text": "Alice was beginning"})
_SHIPPED = ROOT / "docker/ray/serve.yaml"
_VARIABLES = {"default": {}, "HAProxy": {"RAY_SERVE_ENABLE_HA_PROXY": "1"}}
_CLIENTS = 16
_READY_S = 180.0


def main() -> None:
    """Measure, print and write `ray-serve.json`."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.ray_serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3, help="length of each turn")
    options = parser.parse_args()
    missing = ray_cluster.missing()
    if missing is not None:
        sys.exit(f"bench.ray_serve: {missing}")
    say(machine())
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        models = folder / "models"
        shutil.copytree(ROOT / "models/alice-lstm", models / "alice-lstm")
        sides = {"bare": stack.enter_context(_bare(models, folder))}
        for mode, variables in _VARIABLES.items():
            sides[mode] = stack.enter_context(_behind_ray(models, variables))
        _, answer = ask(sides["bare"][1], _url(sides["bare"]) + "/score", _BODY)
        case = Case("/score", _BODY, known(answer), {})
        rows = _measured(sides, case, folder, options.rounds, options.seconds)
    say(table(rows))
    write("ray-serve.json", "A request behind Ray Serve's proxies", rows, {"ray": "2.60.0"})
    say(f"written to {RESULTS / 'ray-serve.json'}")


@contextmanager
def _bare(models: Path, folder: Path) -> Iterator[tuple[Node, Node]]:
    """The service on a node, and a node for clients."""
    flags = ("--workers", "1", "--engine-threads", "1", "--log-requests", "false")
    with nodes(2) as (server, client), (folder / "bare.log").open("w") as log:
        where = ("--host", server.address, "--models-dir", models)
        server.start([sys.executable, "-m", "service", *flags, *where], output=log)
        _wait_until_ready((server, client))
        yield server, client


@contextmanager
def _behind_ray(models: Path, variables: Mapping[str, str]) -> Iterator[tuple[Node, Node]]:
    """One replica of the shipped configuration on a node, and a node for clients."""
    configuration: dict[str, Any] = yaml.safe_load(_SHIPPED.read_text())
    application = configuration["applications"][0]
    application["runtime_env"]["env_vars"] = {
        "UNROLL_MODELS_DIR": str(models),
        "UNROLL_ALLOWED_HOSTS": "*",
        "UNROLL_LOG_REQUESTS": "false",
    }
    application["deployments"][0]["autoscaling_config"] |= {"min_replicas": 1, "max_replicas": 1}
    with nodes(2) as made, ray_cluster.ray_cluster(made, variables=variables) as cluster:
        cluster.deploy(configuration)
        ray_cluster.wait_until(lambda: cluster.is_settled(1), _READY_S)
        _wait_until_ready((cluster.head, cluster.client))
        yield cluster.head, cluster.client


def _url(side: tuple[Node, Node]) -> str:
    return f"http://{side[0].address}:8000"


def _wait_until_ready(side: tuple[Node, Node]) -> None:
    ray_cluster.wait_until(lambda: ask(side[1], _url(side) + "/readyz")[0] == 200, _READY_S)


def _measured(
    sides: Mapping[str, tuple[Node, Node]], case: Case, folder: Path, rounds: int, seconds: float
) -> list[Row]:
    """The median of the rounds, in which the sides take turns, and of the rounds' ratios."""
    times: dict[str, list[float]] = {mode: [] for mode in sides}  # ms, of one client
    rates: dict[str, list[float]] = {mode: [] for mode in sides}
    works: dict[str, list[float]] = {mode: [] for mode in sides}  # ms of a processor a request
    for number in range(rounds + 1):
        for mode, side in sides.items():
            idle = _processor_s(side[0])
            time.sleep(seconds)
            idle = _processor_s(side[0]) - idle
            alone = _turn(side, Plan([_url(side)], [case], 1, seconds), folder)
            work, start = _processor_s(side[0]), time.monotonic()
            many = _turn(side, Plan([_url(side)], [case], _CLIENTS, seconds), folder)
            idle *= (time.monotonic() - start) / seconds
            work = _processor_s(side[0]) - work - idle
            if number:  # the first round warms up
                times[mode].append(1e3 * statistics.median(x.end - x.start for x in alone))
                rates[mode].append(len(many) / (max(x.end for x in many) - many[0].start))
                works[mode].append(1e3 * work / len(many))
    rows = []
    for mode in sides:
        for title, unit, values, power in (
            ("one client", "ms", times, -1),
            (f"{_CLIENTS} clients", "requests/s", rates, 1),
            ("processor time of a request", "ms", works, -1),
        ):
            ratios = [
                (own / bare) ** power
                for own, bare in zip(values[mode], values["bare"], strict=True)
            ]
            against = None if mode == "bare" else "bare"
            ratio = None if mode == "bare" else statistics.median(ratios)
            rows.append(
                Row(f"{mode}: {title}", statistics.median(values[mode]), unit, against, ratio)
            )
    return rows


def _processor_s(node: Node) -> float:
    """Processor time of all processes on a node, in seconds."""
    total = 0.0
    for pid in node.pids():
        with suppress(psutil.NoSuchProcess):
            spent = psutil.Process(pid).cpu_times()
            total += spent.user + spent.system
    return total


def _turn(side: tuple[Node, Node], plan: Plan, folder: Path) -> list[Outcome]:
    with sending(side[1], plan, folder, is_cut=False) as outcomes:
        pass
    wrong = [each for each in outcomes if not each.is_right]
    if wrong:
        sys.exit(f"bench.ray_serve: {len(wrong)} wrong answers, such as {wrong[0]}")
    return outcomes


if __name__ == "__main__":
    main()
