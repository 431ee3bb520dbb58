"""`python -m bench.efficiency`: how much of the server's processor time its work needs.

    efficiency = (processor time of the bare graph + of an empty FastAPI route) / of the service

at 32 clients in a closed loop with the mixed lengths of `bench.load.mix`. Over a span that begins
and ends with an idle server:

* service: the processor time of all its threads and processes;
* bare graph: the step graph alone, its arrays bound, on one thread of this process. Let n be the
  mean number of rows a step over the span, from the server's own `unroll_step_rows` (sum / count),
  and c(n) the processor time of one step of n rows, between whole numbers by interpolation. Every
  token that the span read or wrote is charged c(n) / n: prompt tokens (with a bos each, without
  those from the prefix cache) plus written tokens, but for the last of each answer, which no graph
  reads. Prompts are charged as steps, although the server may read them in chunks;
* empty route: `bench.empty_route` with the same bodies from as many clients, its processor time a
  request times the answers of the span.

Sampling, rows that join and leave, JSON, checks, logs and metrics are in neither: an efficiency of
1 is out of reach. The bare graph runs while the clients are silent; on cores that share their
units, this makes it cheaper than it is in the service.
"""

import argparse
import statistics
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from bench.empty_route import empty_route
from bench.load import Request, mix
from bench.models import WORK, ensure
from bench.plain_clients import Span, connected, posts
from bench.report import RESULTS, Row, machine, say, table, write
from bench.requests import add_server_options, described, is_plain, shape_of
from bench.server import Server, unroll
from service.bundle.store import read_language_model
from service.runtime.language_model import OnnxLanguageModelSession

SHAPES = ((2, 128), (1, 336), (2, 512))
CLIENTS = 32
_REQUESTS = 8192  # more than a span can take


@dataclass(frozen=True, slots=True)
class Work:
    """The work of a server in a span, by its own metrics."""

    steps: float
    stepped_rows: float
    tokens: float  # that went through a graph

    def __sub__(self, other: "Work") -> "Work":
        return Work(
            self.steps - other.steps,
            self.stepped_rows - other.stepped_rows,
            self.tokens - other.tokens,
        )

    @property
    def rows(self) -> float:
        """The mean number of rows a step."""
        return self.stepped_rows / self.steps


@dataclass(frozen=True, slots=True)
class Round:
    """The processor time of a span, and what parts of it would cost by themselves."""

    span: Span
    work: Work
    graph_s: float
    route_s: float

    @property
    def efficiency(self) -> float:
        """The share of the processor time that graph and HTTP need at least."""
        return (self.graph_s + self.route_s) / self.span.server_cpu_s


def main() -> None:
    """Measure, print and, if the defaults were measured, write `efficiency.json`."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.efficiency",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shapes", nargs="+", type=shape_of, default=list(SHAPES))
    add_server_options(parser)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=1.5, help="length of each span")
    parser.add_argument("--quick", action="store_true", help="two rounds of 0.5 s")
    options = parser.parse_args()
    rounds, seconds = (2, 0.5) if options.quick else (options.rounds, options.seconds)
    settings = dict(options.set)
    title = f"efficiency at {CLIENTS} clients, mixed lengths; settings: {described(settings)}"
    say(f"{machine()}; {title}; {rounds} rounds of {seconds:g} s")
    checkouts = {"Unroll": None}
    if options.against:
        checkouts[f"Unroll in {options.against}"] = options.against.resolve()
    rows: list[Row] = []
    for shape in options.shapes:
        name = ensure(WORK, *shape)
        models, logs = WORK / "models" / name, WORK / "logs"
        with ExitStack() as stack:
            servers = {}
            for number, (label, folder) in enumerate(checkouts.items()):
                log = logs / f"efficiency-{number}.log"
                place = () if folder is None else (folder,)
                servers[label] = stack.enter_context(unroll(models, log, *place, **settings))
            empty = stack.enter_context(empty_route(logs / "empty-route.log"))
            found = measure(name, servers, empty, rounds=rounds, duration_s=seconds)
        part = rows_of(f"{name}, {CLIENTS} clients, mixed lengths", found)
        say(table(part))
        rows += part
    if options.shapes == list(SHAPES) and is_plain(options):
        write("efficiency.json", title, rows)
        say(f"written: {RESULTS / 'efficiency.json'}")


def measure(
    name: str,
    servers: Mapping[str, Server],
    empty: tuple[Server, str],
    *,
    rounds: int,
    duration_s: float,
) -> dict[str, list[Round]]:
    """Rounds of each server, by label."""
    bundle = read_language_model(WORK / "models" / name / name)
    step_s = step_costs(OnnxLanguageModelSession(bundle, bundle.manifest.precision))
    route, route_url = empty
    found: dict[str, list[Round]] = {label: [] for label in servers}
    for number in range(rounds):
        for position, (label, server) in enumerate(servers.items()):
            # New prompts in every span, so that prefix caches do not help.
            requests = mix(_REQUESTS, seed=1000 * number + position)
            with connected(
                f"{server.url}/generate",
                generate_posts(f"{server.url}/generate", name, requests),
                CLIENTS,
            ) as clients:
                before = work_of(server)
                span = clients.span(duration_s, server.pid)
                work = work_of(server) - before
            with connected(
                route_url, generate_posts(route_url, name, requests), CLIENTS
            ) as clients:
                bare = clients.span(min(0.5, duration_s), route.pid)
            graph_s = work.tokens * between(step_s, work.rows) / work.rows
            route_s = span.answers * bare.cpu_s_per_request
            found[label].append(Round(span, work, graph_s, route_s))
    return found


def generate_posts(url: str, name: str, requests: list[Request]) -> Iterator[bytes]:
    """Requests to generate, as bytes."""
    bodies = (
        {
            "model": name,
            "prompt": request.prompt,
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "seed": request.seed,
        }
        for request in requests
    )
    return posts(url, bodies)


def work_of(server: Server) -> Work:
    """What the server has counted until now."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as answer:
        return parsed(answer.read().decode())


def parsed(metrics: str) -> Work:
    """The work in the text of `/metrics`, of all models together."""
    sums = {"unroll_step_rows_count": 0.0, "unroll_step_rows_sum": 0.0}
    tokens = {"prompt": 0.0, "completion": 0.0, "cached": 0.0}
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            if sample.name in sums:
                sums[sample.name] += sample.value
            elif sample.name == "unroll_tokens_total":
                tokens[sample.labels["kind"]] += sample.value
    # `prompt` leaves out the bos of each answer, which takes the place of the last token written.
    through_graph = tokens["prompt"] - tokens["cached"] + tokens["completion"]
    return Work(sums["unroll_step_rows_count"], sums["unroll_step_rows_sum"], through_graph)


def step_costs(session: OnnxLanguageModelSession, slice_s: float = 0.1) -> Callable[[int], float]:
    """A function that measures the processor seconds of a step of so many rows."""

    def cost(rows: int) -> float:
        stepper = session.stepper(rows)
        stepper.tokens[:] = 40
        stepper.step(rows)
        steps, begin = 0, time.process_time()
        while (spent := time.process_time() - begin) < slice_s:
            for _ in range(16):
                stepper.step(rows)
            steps += 16
        return spent / steps

    return cost


def between(cost: Callable[[int], float], rows: float) -> float:
    """The cost of a number of rows between two whole numbers, on the line between them."""
    below = int(rows)
    low, high = cost(below), cost(below + 1)
    return low + (rows - below) * (high - low)


def rows_of(where: str, found: Mapping[str, list[Round]]) -> list[Row]:
    """The efficiency of each server, and of what it consists; the first against the others."""
    (label, mine), *others = found.items()

    def against(other: str, theirs: list[Round]) -> Row:
        pairs = zip(mine, theirs, strict=True)
        ratio = statistics.median(x.efficiency / y.efficiency for x, y in pairs)
        return Row(f"{where}: {label}, efficiency", _median(mine, _efficiency), "", other, ratio)

    rows = [against(other, theirs) for other, theirs in others]
    for name, rounds in found.items():
        if name != label or not others:
            rows.append(Row(f"{where}: {name}, efficiency", _median(rounds, _efficiency), ""))
        rows += [
            Row(f"{where}: {name}, {what}", _median(rounds, figure), unit)
            for what, figure, unit in (
                ("processor", lambda x: 1e6 * x.span.cpu_s_per_request, "µs/request"),
                ("the bare graph", lambda x: 1e6 * x.graph_s / x.span.answers, "µs/request"),
                ("an empty route", lambda x: 1e6 * x.route_s / x.span.answers, "µs/request"),
                ("rows", lambda x: x.work.rows, "rows/step"),
            )
        ]
    return rows


def _efficiency(found: Round) -> float:
    return found.efficiency


def _median(rounds: list[Round], figure: Callable[[Round], float]) -> float:
    return statistics.median(map(figure, rounds))


if __name__ == "__main__":
    main()
