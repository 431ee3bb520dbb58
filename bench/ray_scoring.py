"""`python -m bench.ray_scoring`: characters a second of Ray Data's stage, on one node and on two.

A node is a network namespace with one scoring process (needs root, and Ray from
`make .venv/cluster/.done`). The time is the difference between a large and a small input, so that
what Ray takes to start does not count. The cluster comes before the machine's other work.
"""

import argparse
import os
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from bench.batch import write_lines
from bench.report import machine, say
from bench.shares import NoShares, join, share
from tests.cluster import ray_cluster
from tests.cluster.load import ROOT
from tests.cluster.namespaces import nodes

_SMALL_MB = 0.25


def seconds(count: int, bundle: Path, folder: Path, name: str) -> list[float]:
    """The times for the small and the large input, on that many nodes."""
    with nodes(count + 1) as made, ray_cluster.ray_cluster(made, cpus=2) as cluster:
        taken = []
        for size in ("warm", "small", "large"):
            given = folder / ("small" if size == "warm" else size)
            began = time.monotonic()
            cluster.command(
                *(ray_cluster.ENVIRONMENT / "python", "-m", "service.cluster.scoring"),
                *("--bundle", bundle, "--input", given, "--output", folder / f"{name}-{size}"),
                *("--workers", str(count)),
                timeout_s=600,
            )
            taken.append(time.monotonic() - began)
        return taken[1:]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=ROOT / "models/alice-lstm")
    parser.add_argument("--megabytes", type=float, default=4)
    options = parser.parse_args()
    missing = ray_cluster.missing()
    if missing is not None:
        sys.exit(f"bench.ray_scoring: {missing}")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        with suppress(NoShares):
            join(stack.enter_context(share("ray-scoring", None)), os.getpid())
        sizes = {"small": _SMALL_MB, "large": options.megabytes}
        for name, megabytes in sizes.items():
            (folder / name).mkdir()
            write_lines(folder / name / "a.log", int(megabytes * 2**20))
        chars = (options.megabytes - _SMALL_MB) * 2**20
        for count in (1, 2):
            small, large = seconds(count, options.bundle, folder, str(count))
            rate = chars / (large - small)
            say(f"{count} nodes: {rate:,.0f} characters/s ({small:.1f} and {large:.1f} s)")
    say(machine())


if __name__ == "__main__":
    main()
