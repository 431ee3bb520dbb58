"""How many processors there are to use."""

import os
from pathlib import Path

import pytest

from service.cpus import usable_cpus

AFFINITY = len(os.sched_getaffinity(0))


def version_2(folder: Path, content: str) -> tuple[Path, Path]:
    (folder / "cpu.max").write_text(content)
    return folder / "cpu.max", folder / "none"


def version_1(folder: Path, quota: str, period: str) -> tuple[Path, Path]:
    (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (folder / "cpu.cfs_period_us").write_text(f"{period}\n")
    return folder / "none", folder


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("max 100000\n", AFFINITY),
        ("100000 100000\n", 1),
        ("20000 100000\n", 1),  # a fifth of one is still one
        ("199999 100000\n", 1),
        ("6400000 100000\n", AFFINITY),
    ],
)
def test_a_quota_of_version_2_bounds_them(tmp_path: Path, content: str, expected: int) -> None:
    assert usable_cpus(*version_2(tmp_path, content)) == expected


@pytest.mark.parametrize(
    ("quota", "expected"), [("-1", AFFINITY), ("100000", 1), ("50000", 1), ("9900000", AFFINITY)]
)
def test_a_quota_of_version_1_bounds_them(tmp_path: Path, quota: str, expected: int) -> None:
    assert usable_cpus(*version_1(tmp_path, quota, "100000")) == expected


def test_without_a_control_group_there_is_the_affinity(tmp_path: Path) -> None:
    assert usable_cpus(tmp_path / "none", tmp_path / "neither") == AFFINITY


def test_the_affinity_is_the_processs_own() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_cpus() == 1
    finally:
        os.sched_setaffinity(0, before)
