"""How many processors this process may use: its affinity and its control group's quota."""

import math
import os
from pathlib import Path

_CGROUP_2 = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_1 = Path("/sys/fs/cgroup/cpu")


def usable_cpus(cgroup_2: Path = _CGROUP_2, cgroup_1: Path = _CGROUP_1) -> int:
    """Processors in the process's affinity, or fewer where a quota grants less time; at least 1.

    A container sees its own control group at the root (Linux, cgroups(7)): version 2 writes
    "quota period" in `cpu.max`, version 1 the two in a file each.
    """
    affinity = len(os.sched_getaffinity(0))
    quota = _quota(cgroup_2, cgroup_1)
    return affinity if quota is None else max(1, min(affinity, math.floor(quota)))


def _quota(cgroup_2: Path, cgroup_1: Path) -> float | None:
    """Processors' worth of time that the control group grants; None without a bound."""
    try:
        if cgroup_2.exists():
            quota, period = cgroup_2.read_text().split()
        else:
            quota = (cgroup_1 / "cpu.cfs_quota_us").read_text().strip()
            period = (cgroup_1 / "cpu.cfs_period_us").read_text().strip()
    except FileNotFoundError:
        return None
    return None if quota in {"max", "-1"} else int(quota) / int(period)
