"""How many processes there are, and what each of them may take."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.setting_shares import MAX_DEFAULT_WORKERS, default_workers, share_of
from service.settings import Settings

GIB = 2**30


@pytest.mark.parametrize(
    ("cpus", "memory_bytes", "expected"),
    [
        (1, 64 * GIB, 1), (2, 64 * GIB, 2), (4, 64 * GIB, 4), (16, 64 * GIB, 8), (64, 64 * GIB, 8),
        # docker/compose.yaml, and a small machine
        (16, 2 * GIB, 4), (2, 2 * GIB, 2), (2, GIB // 2, 1), (2, GIB // 4, 1),
    ],
)  # fmt: skip
def test_there_is_a_process_for_each_processor_within_bounds(
    cpus: int, memory_bytes: int, expected: int
) -> None:
    assert default_workers(cpus, memory_bytes) == expected


@given(st.integers(1, 2000), st.integers(1, MAX_DEFAULT_WORKERS))
def test_shares_are_within_the_whole_and_never_nothing(whole: int, workers: int) -> None:
    settings = Settings(max_connections=whole, max_queue_rows=whole, prefix_cache_bytes=whole)
    share = share_of(settings, workers)
    for name in ("max_connections", "max_queue_rows", "prefix_cache_bytes"):
        part = getattr(share, name)
        assert part >= 1
        assert part * workers <= max(whole, workers)
        assert part * workers > whole - workers
    assert share.max_bodies_bytes >= settings.max_body_bytes


def test_a_cache_that_is_off_stays_off() -> None:
    share = share_of(Settings(prefix_cache_bytes=0), 4)
    assert (share.prefix_cache_bytes, share.workers) == (0, 4)
