"""How many processors this process may use: its affinity and its control groups' quotas.

Training has the same code (`training.loop.cpus`), since neither may import the other; one test
checks both.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_ROOT = Path("/")
_GROUPS = "sys/fs/cgroup"


def usable_cpus(root: Path = _ROOT) -> int:
    """Processors in the process's affinity, or fewer where a quota grants less time; at least 1.

    A quota holds for everything below its control group (Linux, cgroups(7)), so the smallest one
    from the process's own group up to the root counts, such as that of a pod, a slice or a systemd
    unit. `root` is where `/proc` and `/sys` are.
    """
    affinity = _affinity()
    quotas = [*_quotas(root)]
    return max(1, min([affinity, *map(math.floor, quotas)]))


def _affinity() -> int:
    # Not on macOS.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas(root: Path) -> Iterator[float]:
    """The quota of each control group that has one, in processors."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2, which has its own folder where version 1 is present
            for mount in (root / _GROUPS, root / _GROUPS / "unified"):
                for group in _upwards(mount, path):
                    yield from _granted(_text(group / "cpu.max").split())
        elif "cpu" in controllers.split(","):
            for mount in (root / _GROUPS / "cpu", root / _GROUPS / controllers):
                for group in _upwards(mount, path):
                    names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
                    yield from _granted([_text(group / name).strip() for name in names])


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """A group's folder, its parents', and the mount itself.

    A container may see its group at the mount, but the host's path for it. Then only the mount
    exists as a folder, and its values are the container's.
    """
    parts = [part for part in PurePosixPath(path).parts if part not in {"/", ".."}]
    for length in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:length])


def _granted(words: list[str]) -> Iterator[float]:
    """`quota period`, in microseconds, as processors; nothing if there is no quota."""
    if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]):
        yield int(words[0]) / int(words[1])


def _text(path: Path) -> str:
    """A file's text, or "": a group may lack the controller, be gone or be hidden."""
    try:
        return path.read_text("ascii")
    except OSError:
        return ""
