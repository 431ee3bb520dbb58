"""How much memory this process may use: the machine's, or less where a control group limits it."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_ROOT = Path("/")
_GROUPS = "sys/fs/cgroup"


def usable_bytes(root: Path = _ROOT) -> int:
    """The machine's memory, or the smallest limit of the process's control groups (cgroups(7)).

    As with processors (`cpus`), the limits from the process's own group up to the root count.
    `root` is where `/proc` and `/sys` are.
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_limits(root)])


def _limits(root: Path) -> Iterator[int]:
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            mount, name = root / _GROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            mount, name = root / _GROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        parts = [part for part in PurePosixPath(path).parts if part not in {"/", ".."}]
        for length in range(len(parts), -1, -1):
            # "max" is no limit.
            limit = _text(mount.joinpath(*parts[:length], name)).strip()
            if limit.isdecimal():
                yield int(limit)


def _text(path: Path) -> str:
    """A file's text, or "": a group may lack the controller, be gone or be hidden."""
    try:
        return path.read_text("ascii")
    except OSError:
        return ""
