"""A fixed share of a processor for a process, by the kernel's control groups (Linux, as root)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
# A process that has used up its share waits for the rest of the period. In a shorter one it would
# spend much of each turn on filling the caches that others have used meanwhile.
_PERIOD_US = 100_000
# More than the programs outside have together, so that a share is also had on a busy machine: the
# most that the second version of control groups takes, and the first.
_WEIGHT, _FIRST_WEIGHT = 10_000, 262_144


class NoShares(Exception):
    """This machine or user cannot have control groups for processors."""


@contextmanager
def share(name: str, cpus: float | None) -> Iterator[Path]:
    """A group of processes that may use so much of a processor together; None sets no limit.

    Raises NoShares.
    """
    try:
        group = _made(f"unroll-{os.getpid()}-{name}", cpus)
    except OSError as error:
        raise NoShares(f"control groups for processors: {error.strerror}; run as root") from error
    try:
        yield group
    finally:
        # What is left goes back to the group above; a group with processes cannot be removed.
        for pid in (group / "cgroup.procs").read_text().split():
            (group.parent / "cgroup.procs").write_text(pid)
        group.rmdir()


def join(group: Path, pid: int) -> None:
    """Put a process, with all its threads, into a group."""
    (group / "cgroup.procs").write_text(str(pid))


def _made(name: str, cpus: float | None) -> Path:
    quota_us = None if cpus is None else int(cpus * _PERIOD_US)
    first = _ROOT / "cpu"  # the controllers' first version
    group = (first if first.is_dir() else _ROOT) / name
    if not first.is_dir():
        (_ROOT / "cgroup.subtree_control").write_text("+cpu")
    group.mkdir()
    try:
        if first.is_dir():
            (group / "cpu.shares").write_text(str(_FIRST_WEIGHT))
            (group / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
            (group / "cpu.cfs_quota_us").write_text(str(quota_us or -1))
        else:
            (group / "cpu.weight").write_text(str(_WEIGHT))
            (group / "cpu.max").write_text(f"{quota_us or 'max'} {_PERIOD_US}")
    except OSError:
        group.rmdir()
        raise
    return group
