"""Work that is ended from outside: by a deadline, by a client that leaves, by a cancelled task."""

import asyncio
import time
from itertools import permutations

import pytest

from service.errors import ClientGone, DeadlineExceeded, ServiceError
from service.runtime.interrupts import Deadlines, Interruptible


def late() -> ServiceError:
    return DeadlineExceeded("too late")


@pytest.mark.parametrize("after_s", [-1.0, 0.0, 1e-6])
def test_a_deadline_that_has_passed_ends_the_work(after_s: float) -> None:
    async def main() -> None:
        deadlines = Deadlines()
        for _ in range(2):  # the second needs a timer of its own
            with (
                pytest.raises(DeadlineExceeded),
                deadlines.at(time.monotonic() + after_s, late),
            ):
                await asyncio.Event().wait()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    asyncio.run(main())


def test_one_deadline_ends_only_its_own_work() -> None:
    async def main() -> list[object]:
        deadlines = Deadlines()

        ended = asyncio.Event()

        async def work(after_s: float) -> str:
            try:
                with deadlines.at(time.monotonic() + after_s, late):
                    await ended.wait()
            finally:
                if after_s == 0.001:
                    ended.set()
            return "done"

        works = [work(60.0), work(0.0), work(0.001), work(60.0)]
        return [
            type(x) if isinstance(x, Exception) else x
            for x in await asyncio.gather(*works, return_exceptions=True)
        ]

    assert asyncio.run(main()) == ["done", DeadlineExceeded, DeadlineExceeded, "done"]


@pytest.mark.parametrize(
    "order", [x for n in (1, 2, 3) for x in permutations(("gone", "late", "cancel"), n)]
)
def test_what_ends_work_in_the_same_moment_leaves_the_task_whole(order: tuple[str, ...]) -> None:
    async def work(ways: dict[str, object]) -> None:
        with Interruptible() as outer, Deadlines().at(time.monotonic() + 60.0, late) as inner:
            ways.update(gone=lambda: outer.interrupt(ClientGone("left")), late=inner.end)
            await asyncio.Event().wait()

    async def main() -> tuple[type[BaseException], int]:
        ways: dict[str, object] = {}
        task = asyncio.create_task(work(ways))
        ways["cancel"] = task.cancel
        await asyncio.sleep(0)
        for name in order:
            way = ways[name]
            assert callable(way)
            way()
        with pytest.raises((ServiceError, asyncio.CancelledError)) as raised:
            await task
        return raised.type, task.cancelling()

    # A cancelled task stays cancelled; else the outer part, if both end, tells why.
    expected: type[BaseException] = DeadlineExceeded
    if "cancel" in order:
        expected = asyncio.CancelledError
    elif "gone" in order:
        expected = ClientGone
    assert asyncio.run(main()) == (expected, int("cancel" in order))


def test_an_interruption_after_the_end_does_nothing() -> None:
    async def main() -> str:
        with Interruptible() as part:
            await asyncio.sleep(0)
        part.interrupt(ClientGone("left"))
        await asyncio.sleep(0)
        return "whole"

    assert asyncio.run(main()) == "whole"
