"""`python -m bench.as_it_starts`: default settings beside other numbers of processes.

Tokens a second of 32 clients in a closed loop with the mixed lengths of `bench.load`. The servers
run at the same time and take turns under the same load, round after round. The ratio of the
default settings is to the fastest of the others: 1 where no other choice gains anything. The ratio
of each other is to the default settings. Ratios are medians over the rounds.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from bench.http import generate_endpoint
from bench.load import Run, closed_loop, mix
from bench.models import WORK, ensure
from bench.report import RESULTS, Row, machine, say, table, write
from bench.requests import described, shape_of
from bench.server import unroll

SHAPES = ((2, 128), (2, 512))
CLIENTS = 32
DEFAULTS = "default settings"
CANDIDATES: Sequence[Mapping[str, object]] = (
    {},
    *({"workers": workers, "engine_threads": threads} for workers in (1, 2) for threads in (1, 2)),
)


def main() -> None:
    """Measure, print and write `as-it-starts.json`."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.as_it_starts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shapes", nargs="+", type=shape_of, default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.5, help="length of each turn")
    parser.add_argument("--quick", action="store_true", help="two rounds of 0.5 s")
    options = parser.parse_args()
    rounds, seconds = (2, 0.5) if options.quick else (options.rounds, options.seconds)
    title = f"default settings beside others, {CLIENTS} clients, mixed lengths"
    say(f"{machine()}; {title}; {rounds} rounds of {seconds:g} s")
    rows: list[Row] = []
    for shape in options.shapes:
        name = ensure(WORK, *shape)
        part = rows_of(f"{name}, {CLIENTS} clients", measure(name, rounds, seconds))
        say(table(part))
        rows += part
    if options.shapes == list(SHAPES) and not options.quick:
        write("as-it-starts.json", title, rows)
        say(f"written: {RESULTS / 'as-it-starts.json'}")


def measure(name: str, rounds: int, duration_s: float) -> dict[str, list[Run]]:
    """The runs of every candidate, by its settings in words."""
    with ExitStack() as stack:
        servers = {}
        for number, settings in enumerate(CANDIDATES):
            log = WORK / "logs" / f"as-it-starts-{number}.log"
            server = stack.enter_context(unroll(WORK / "models" / name, log, **settings))
            servers[described(settings) if settings else DEFAULTS] = server
        runs: dict[str, list[Run]] = {label: [] for label in servers}
        for number in range(rounds):
            for label, server in servers.items():
                run = closed_loop(
                    generate_endpoint(server, name),
                    mix(4096, seed=number),
                    clients=CLIENTS,
                    duration_s=duration_s,
                    server_pid=server.pid,
                )
                if len(run.good) < len(run.answers):
                    raise RuntimeError(f"{label}: not every request was answered with 200")
                runs[label].append(run)
    return runs


def rows_of(where: str, runs: Mapping[str, Sequence[Run]]) -> list[Row]:
    """A row for each candidate; all but the first with the first one's ratio to it."""
    label, *others = runs
    speeds = {x: [run.tokens_per_s for run in measured] for x, measured in runs.items()}
    best = max(others, key=lambda other: statistics.median(speeds[other]))

    def row(mine: str, against: str) -> Row:
        pairs = zip(speeds[mine], speeds[against], strict=True)
        ratio = statistics.median(x / y for x, y in pairs)
        return Row(f"{where}: {mine}", statistics.median(speeds[mine]), "tokens/s", against, ratio)

    rows = [row(label, best), *(row(other, label) for other in others)]
    cores = [
        Row(f"{where}: {x}, processors", _cores(measured), "cores") for x, measured in runs.items()
    ]
    return [*rows, *cores]


def _cores(runs: Sequence[Run]) -> float:
    return statistics.median(run.server_cpu_s / (run.end - run.begin) for run in runs)


if __name__ == "__main__":
    main()
