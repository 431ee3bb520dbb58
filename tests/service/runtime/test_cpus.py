"""How many processors there are to use."""

import os
from pathlib import Path
from types import ModuleType

import pytest

import service.runtime.cpus
import training.loop.cpus

AFFINITY = 8
V1 = "5:cpu,cpuacct:{}\n4:memory:/elsewhere\n"


@pytest.fixture(autouse=True)
def _eight_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(AFFINITY)), raising=False)


def tree(root: Path, own: str, files: dict[str, str]) -> Path:
    """A root folder with `/proc/self/cgroup` and files under `/sys/fs/cgroup`."""
    for path, content in {"proc/self/cgroup": own, **files}.items():
        file = root / ("" if path.startswith("proc/") else "sys/fs/cgroup") / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return root


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        # A container sees its own group at the root.
        ("0::/\n", {"cpu.max": "max 100000\n"}, AFFINITY),
        ("0::/\n", {"cpu.max": "100000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "20000 100000\n"}, 1),  # a fifth of one is still one
        ("0::/\n", {"cpu.max": "399999 100000\n"}, 3),
        ("0::/\n", {"cpu.max": "6400000 100000\n"}, AFFINITY),
        # It may have its path as the host sees it, or one above its root.
        ("0::/kubepods/pod1/c1\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/../pod1\n", {"cpu.max": "200000 100000\n"}, 2),
        # A systemd unit with CPUQuota=250%, and one inside of a slice with less.
        ("0::/system.slice/unroll.service\n",
         {"system.slice/unroll.service/cpu.max": "250000 100000\n"}, 2),
        ("0::/system.slice/unroll.service\n",
         {"system.slice/unroll.service/cpu.max": "500000 100000\n",
          "system.slice/cpu.max": "300000 100000\n"}, 3),
        ("0::/a/b/c\n", {"a/b/c/cpu.max": "max 100000\n", "a/cpu.max": "400000 200000\n"}, 2),
        ("0::/a/b\n", {"a/sibling/cpu.max": "100000 100000\n"}, AFFINITY),
        # Version 1, where the controller may share its folder.
        (V1.format("/"), {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
         AFFINITY),
        (V1.format("/"),
         {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        (V1.format("/docker/abc"),
         {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        (V1.format("/pod/c"),
         {"cpu,cpuacct/pod/cpu.cfs_quota_us": "300000\n",
          "cpu,cpuacct/pod/cpu.cfs_period_us": "100000\n",
          "cpu,cpuacct/pod/c/cpu.cfs_quota_us": "-1\n",
          "cpu,cpuacct/pod/c/cpu.cfs_period_us": "100000\n"}, 3),
        # Both: version 2 beside it, without the controller.
        (V1.format("/u") + "0::/u\n",
         {"cpu/u/cpu.cfs_quota_us": "100000\n", "cpu/u/cpu.cfs_period_us": "50000\n",
          "unified/u/cgroup.procs": "1\n"}, 2),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "side", [service.runtime.cpus, training.loop.cpus], ids=["service", "training"]
)
def test_the_least_quota_on_the_way_up_counts(
    tmp_path: Path, own: str, files: dict[str, str], expected: int, side: ModuleType
) -> None:
    assert side.usable_cpus(tree(tmp_path, own, files)) == expected


def test_without_a_control_group_there_is_the_affinity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (
        service.runtime.cpus.usable_cpus(tmp_path)
        == training.loop.cpus.usable_cpus(tmp_path)
        == AFFINITY
    )
    # There is no affinity on macOS.
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert (
        service.runtime.cpus.usable_cpus(tmp_path) == training.loop.cpus.usable_cpus(tmp_path) == 6
    )


def test_this_machine_has_some() -> None:
    assert 1 <= service.runtime.cpus.usable_cpus() <= AFFINITY
