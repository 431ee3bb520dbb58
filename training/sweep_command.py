"""The command `sweep`: its options, and what it prints."""

import argparse
from pathlib import Path

from training.experiments.grid import open_grid
from training.experiments.run import Say
from training.experiments.sweep import report, sweep, train_command
from training.loop.trainer import Stopped

SET_HELP = "override a value of the configuration, such as model.hidden_size=512"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("config", type=Path, metavar="CONFIG.toml")
    parser.add_argument(
        "--set", action="append", required=True, metavar="KEY=VALUE,VALUE", help=SET_HELP
    )
    parser.add_argument("--jobs", type=_positive, default=1, help="runs at once (default: 1)")
    parser.add_argument("--runs", type=Path, help="the runs' folder (default: runs/NAME-sweep)")
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--list", action="store_true", help="print the numbered runs, and exit")
    either.add_argument("--only", type=_natural, metavar="N", help="train only run N")
    either.add_argument("--table", action="store_true", help="print the table, and exit")


def run(options: argparse.Namespace, say: Say) -> int:
    """Train the grid, or show it. Returns 0 if every requested run is finished.

    Raises ConfigError if a configuration of the grid is wrong; then nothing is trained.
    """
    grid = open_grid(options.config, options.set, options.runs)
    if options.list:
        for point in grid.points:
            say(f"{point.index}\t{point.label}")
        return 0
    if options.table:
        report(grid, say)
        return 0
    points = grid.points if options.only is None else [grid.point(options.only)]
    command = train_command(grid, options.jobs)
    try:
        finished = sweep(grid, points, jobs=options.jobs, command=command, say=say)
    except Stopped as stopped:
        say(f"stopped by {stopped}; the same command continues, and skips the finished runs")
        return 128 + stopped.signal_number
    return 0 if finished else 1


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("a whole number from 0 up")
    return value


def _positive(text: str) -> int:
    if _natural(text) == 0:
        raise argparse.ArgumentTypeError("a whole number from 1 up")
    return int(text)
