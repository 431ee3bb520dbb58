"""How much memory there is to use."""

import os
from pathlib import Path

import pytest

from service.runtime.memory import usable_bytes
from tests.service.runtime.test_cpus import tree

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
V1 = "4:memory:{}\n5:cpu,cpuacct:/elsewhere\n"


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"memory.max": "max\n"}, MACHINE),
        ("0::/\n", {"memory.max": "1048576\n"}, 1048576),
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "4096\n"}, 4096),
        ("0::/a/b\n", {"a/b/memory.max": "4096\n", "a/memory.max": "8192\n"}, 4096),
        # A container may have its path as the host sees it.
        ("0::/../pod1\n", {"memory.max": "4096\n"}, 4096),
        # Version 1 says "no limit" with a number above any machine's memory.
        (V1.format("/"), {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, MACHINE),
        (V1.format("/pod/c"), {"memory/pod/memory.limit_in_bytes": "4096\n"}, 4096),
    ],
)
def test_the_least_limit_on_the_way_up_counts(
    tmp_path: Path, own: str, files: dict[str, str], expected: int
) -> None:
    assert usable_bytes(tree(tmp_path, own, files)) == expected


def test_without_control_groups_it_is_the_machines(tmp_path: Path) -> None:
    assert usable_bytes(tmp_path) == MACHINE
