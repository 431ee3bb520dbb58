"""`python -m bench.anomalies`: log lines, a threshold by percentile, and the alarms that follow.

Makes log lines from a seed (`bench.log_lines`), trains on a part of them and exports. Lines that
neither the training nor the bundle's table has seen are then scored as a person would score them,
with `python -m service score --percentile`, beside lines with something wrong. Prints how many
false alarms each threshold promised and gave, and which of the wrong lines it found. Half a minute.
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
from matplotlib import pyplot as plt

from bench.log_lines import good_lines, wrong_lines
from bench.report import RESULTS, machine, say
from bench.server import ROOT
from service.bundle.store import read_language_model
from training.__main__ import main as training

WORK = ROOT / "bench" / ".work" / "anomalies"
_SEED = 20
_LEARNED, _FURTHER = 20_000, 10_000  # lines
THRESHOLDS = (95.0, 99.0, 99.5)
# An n-gram is counted in a second. A quarter of the lines go into the table, since a threshold of
# 99.5 % needs some thousands.
_CONFIG = """\
name = "server-log"
[data]
files = ["server.log"]
documents = "line"
valid_fraction = 0.01
test_fraction = 0.25
[model]
cell = "ngram"
order = 8
[baselines]
max_order = 2
"""


@dataclass(frozen=True, slots=True)
class Alarms:
    """The false alarms that a threshold predicts, and those that were seen."""

    threshold: float  # percentile; a line above it, or of a length without held-out lines, is one
    predicted: float  # share of good lines
    seen: float
    standard_error: float  # of the difference, from the lines in the table and the further ones
    found: int  # of the wrong lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, score and print; write bench/results/anomalies.json and anomalies.png."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seed",
        type=int,
        default=_SEED,
        help="of the lines; results of another seed are not saved",
    )
    options = parser.parse_args(arguments)
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    lines = good_lines(_LEARNED + _FURTHER, options.seed)
    (WORK / "server.log").write_text("\n".join(lines[:_LEARNED]) + "\n")
    bundle = _bundle()
    table = read_language_model(bundle).manifest.percentiles
    if table is None:
        raise ValueError("the bundle has no table of held-out lines")
    held_out = sum(x.texts for x in table.lengths)
    good = scored(bundle, lines[_LEARNED:])
    kinds, bad = zip(*wrong_lines(), strict=True)
    wrong = scored(bundle, bad)
    rows = [alarms(x, good, wrong, held_out) for x in THRESHOLDS]
    say(f"{held_out:,} held-out lines in {len(table.lengths)} ranges of lengths")
    _print(rows, good, list(zip(kinds, wrong, strict=True)))
    if options.seed == _SEED:
        _write(rows, good, held_out)
    return 0


def _bundle() -> Path:
    config = WORK / "server-log.toml"
    config.write_text(_CONFIG)
    run, models = WORK / "run", WORK / "models"
    commands = (
        ["train", str(config), "--run", str(run)],
        ["export", str(run), "--models", str(models)],
    )
    for command in commands:
        if training(command):
            raise RuntimeError(f"{command[0]} failed")
    return models / "server-log"


def scored(bundle: Path, lines: Sequence[str]) -> list[dict[str, Any]]:
    """The results of `score --percentile`, one for each line."""
    command = [
        "-m",
        "service",
        "score",
        "--bundle",
        str(bundle),
        "--percentile",
        "--format",
        "json",
    ]
    given = "\n".join(lines) + "\n"
    done = subprocess.run(
        [sys.executable, *command], input=given, capture_output=True, text=True, check=True
    )
    # Not splitlines: a line may hold other line separators.
    return [json.loads(x) for x in done.stdout.split("\n")[:-1]]


def alarms(
    threshold: float,
    good: Sequence[dict[str, Any]],
    wrong: Sequence[dict[str, Any]],
    held_out: int,
) -> Alarms:
    """How often a threshold alarms."""
    rate = 1 - threshold / 100
    seen = sum(is_alarm(x, threshold) for x in good) / len(good)
    error = math.sqrt(rate * (1 - rate) * (1 / held_out + 1 / len(good)))
    found = sum(is_alarm(x, threshold) for x in wrong)
    return Alarms(threshold, rate, seen, error, found)


def is_alarm(result: dict[str, Any], threshold: float) -> bool:
    """Whether a line is above the threshold, or of a length that no held-out line has."""
    return result["percentile"] is None or result["percentile"] > threshold


def _print(
    rows: Sequence[Alarms],
    good: Sequence[dict[str, Any]],
    wrong: Sequence[tuple[str, dict[str, Any]]],
) -> None:
    say(f"{'above':>8}{'predicted':>12}{'seen':>9}{'± 2 s.e.':>11}{'found':>10}")
    for x in rows:
        say(
            f"{x.threshold:>7} %{100 * x.predicted:>10.2f} %{100 * x.seen:>7.2f} %"
            f"{200 * x.standard_error:>9.2f} %{x.found:>6} of {len(wrong)}"
        )
    unseen = sum(x["percentile"] is None for x in good)
    say(f"of {len(good):,} further good lines, {unseen} are of a length without held-out lines")
    for kind, found in wrong:
        percentile = "none" if found["percentile"] is None else f"{found['percentile']:.2f}"
        bits = f"{found['bits_per_char']:.2f} bits/char"
        say(f"{kind:<12}{percentile:>6}{bits:>15}  {found['text']!r}")


def _write(rows: Sequence[Alarms], good: Sequence[dict[str, Any]], held_out: int) -> None:
    document = {
        "machine": machine(),
        "held_out_lines": held_out,
        "further_lines": len(good),
        "wrong_lines": len(wrong_lines()),
        "rows": [asdict(x) for x in rows],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "anomalies.json").write_text(json.dumps(document, indent=1) + "\n")
    _plot(good, held_out)


def _plot(good: Sequence[dict[str, Any]], held_out: int) -> None:
    """The share of false alarms over the share that was promised, both logarithmic."""
    promised = np.geomspace(0.002, 0.5, 60)
    percentiles = np.array([100.0 if x["percentile"] is None else x["percentile"] for x in good])
    seen = [(percentiles > 100 * (1 - rate)).mean() for rate in promised]
    error = 2 * np.sqrt(promised * (1 - promised) * (1 / held_out + 1 / len(good)))
    figure, plot = plt.subplots(figsize=(5.5, 3.7), layout="constrained")
    low, high = 100 * (promised - error), 100 * (promised + error)
    plot.fill_between(100 * promised, low, high, alpha=0.2, label="two standard errors")
    plot.plot(100 * promised, 100 * promised, linewidth=1, label="predicted")
    plot.plot(100 * promised, 100 * np.array(seen), ".", label=f"seen on {len(good):,} lines")
    plot.set(
        xscale="log",
        yscale="log",
        xlabel="100 less the percentile of the threshold",
        ylabel="false alarms, % of good lines",
    )
    plot.grid(visible=True, which="both", alpha=0.3)
    plot.legend()
    figure.savefig(RESULTS / "anomalies.png", dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
