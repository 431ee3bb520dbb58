"""`python -m bench.batch`: characters a second of `score --input`, with one worker and with two.

Rounds alternate between the numbers of workers, so that both meet the same machine. As root, the
runs come before the machine's other work. The rate is the one that the command prints, without the
time to start and to open the bundle; the processor time is that of all processes from start to end.
Memory is the sum of the proportional shares (PSS) of the processes, at its highest.
"""

import argparse
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.report import machine, say
from bench.shares import NoShares, join, share

_WORDS = Path("README.md")
_LINE_WORDS = 14  # about 90 characters
_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the command."""

    chars_per_s: float
    processor_s: float
    memory_mb: float


def write_lines(path: Path, size_bytes: int) -> None:
    """Lines of random words."""
    words, dice = _WORDS.read_text().split(), random.Random(1)
    with path.open("w") as file:
        while file.tell() < size_bytes:
            file.write(" ".join(dice.choices(words, k=_LINE_WORDS)) + "\n")


def score(bundle: Path, path: Path, workers: int) -> Run:
    """Score a file."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "service", "score", "--bundle", str(bundle)]
        command += ["--input", str(path), "--output", folder, "--workers", str(workers)]
        before = _children_s()
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        most = 0.0
        while process.poll() is None:
            most = max(most, sum(map(_pss_mb, _tree(process.pid))))
            time.sleep(_EVERY_S)
        if process.returncode:
            raise RuntimeError(f"{command} ended with {process.returncode}")
        told = process.communicate()[1]
        rate = float(re.findall(r"\(([\d,]+) characters/s\)", told)[-1].replace(",", ""))
        return Run(rate, _children_s() - before, most)


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _tree(pid: int) -> Iterator[int]:
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in children:
        yield from _tree(int(child))


def _pss_mb(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, nargs="+", default=[Path("models/alice-lstm")])
    parser.add_argument("--megabytes", type=float, nargs="+", default=[4.0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    stack = ExitStack()
    try:
        with suppress(NoShares):
            join(stack.enter_context(share("batch", None)), os.getpid())
        for bundle in options.bundle:
            for megabytes in options.megabytes:
                path = folder / f"{megabytes}.log"
                write_lines(path, int(megabytes * 2**20))
                _compare(bundle, path, options.workers, options.rounds)
    finally:
        stack.close()
        shutil.rmtree(folder)
    say(machine())
    return 0


def _compare(bundle: Path, path: Path, workers: list[int], rounds: int) -> None:
    runs: dict[int, list[Run]] = {count: [] for count in workers}
    for _ in range(rounds):
        for count in workers:
            runs[count].append(score(bundle, path, count))
    chars = len(path.read_text())
    for count, made in runs.items():
        rate = median(x.chars_per_s for x in made)
        ratios = [
            b.chars_per_s / a.chars_per_s for a, b in zip(runs[workers[0]], made, strict=True)
        ]
        say(
            f"{bundle.name}, {chars:,} characters, {count} workers: {rate:,.0f} characters/s, "
            f"{median(chars / x.processor_s for x in made):,.0f} a processor second, "
            f"{median(ratios):.2f} times {workers[0]} worker, "
            f"{max(x.memory_mb for x in made):.0f} MB"
        )


if __name__ == "__main__":
    sys.exit(main())
