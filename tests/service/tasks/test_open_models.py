"""Which models are open: never over the budget, the longest unused closed first, opened once."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.tasks.open_models import NoRoom, OpenModels, Shelf


def in_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """A test that runs in an event loop."""

    @wraps(test)
    def run() -> None:
        asyncio.run(test())

    return run


class FakeModels:
    """Models of given sizes that count what is open, opened and used."""

    def __init__(self, budget: int, sizes: dict[str, int], patience_s: float = 0.2) -> None:
        self.sizes = sizes
        self.open: set[str] = set()
        self.opening = 0  # bytes
        self.leaving = 0  # bytes
        self.used: dict[str, int] = dict.fromkeys(sizes, 0)
        self.openings: list[str] = []
        self.fails: set[str] = set()
        self.models: OpenModels[str] = OpenModels(
            budget,
            open_one=self._open_one,
            take_out=self._take_out,
            is_used=lambda name: bool(self.used[name]),
            patience_s=patience_s,
        )

    @property
    def bytes(self) -> int:
        """What is really taken."""
        return sum(self.sizes[name] for name in self.open) + self.opening + self.leaving

    async def _open_one(self, name: str) -> str:
        self.openings.append(name)
        self.opening += self.sizes[name]
        assert self.bytes <= self.models.shelf.budget_bytes
        try:
            await asyncio.sleep(random.random() / 1000)
            if name in self.fails:
                raise ValueError(name)
        finally:
            self.opening -= self.sizes[name]
        self.open.add(name)
        return name

    def _take_out(self, name: str) -> "asyncio.Future[None]":
        assert not self.used[name]
        self.open.remove(name)
        self.leaving += self.sizes[name]
        return asyncio.ensure_future(self._end(name))

    async def _end(self, name: str) -> None:
        await asyncio.sleep(random.random() / 1000)
        self.leaving -= self.sizes[name]

    async def use(self, name: str, seconds: float = 0.0) -> None:
        """Use a model as a request does."""
        if name in self.open:
            self.models.shelf.touch(name)
        else:
            await self.models.opened(name, self.sizes[name])
        assert name in self.open
        self.used[name] += 1
        try:
            await asyncio.sleep(seconds)
            assert name in self.open
        finally:
            self.used[name] -= 1


@in_loop
async def test_a_model_is_opened_once_for_all_that_wait_for_it() -> None:
    fake = FakeModels(10, {"a": 4})
    await asyncio.gather(*(fake.use("a") for _ in range(20)))
    assert fake.openings == ["a"]


@in_loop
async def test_the_longest_unused_is_closed_first() -> None:
    fake = FakeModels(10, {"a": 4, "b": 4, "c": 4})
    for name in ("a", "b", "a", "c"):
        await fake.use(name)
    assert fake.openings == ["a", "b", "c"]
    await fake.use("b")
    assert fake.openings == ["a", "b", "c", "b"]


@in_loop
async def test_a_model_in_use_stays_open_and_the_other_is_refused() -> None:
    fake = FakeModels(10, {"a": 6, "b": 6}, patience_s=0.05)
    using = asyncio.create_task(fake.use("a", 0.5))
    await asyncio.sleep(0.01)
    with pytest.raises(NoRoom):
        await fake.use("b")
    await using
    await fake.use("b")


@in_loop
async def test_a_request_waits_for_a_model_that_becomes_free_in_time() -> None:
    fake = FakeModels(10, {"a": 6, "b": 6}, patience_s=2.0)
    using = asyncio.create_task(fake.use("a", 0.05))
    await asyncio.sleep(0.01)
    await fake.use("b")
    await using


@in_loop
async def test_a_request_that_ends_early_leaves_the_others_their_model() -> None:
    fake = FakeModels(10, {"a": 4})
    first, second = (asyncio.create_task(fake.use("a")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await second
    assert fake.openings == ["a"]


@in_loop
async def test_a_model_that_cannot_be_opened_gives_its_room_back() -> None:
    fake = FakeModels(10, {"a": 8, "b": 8})
    fake.fails = {"a"}
    for _ in range(3):
        with pytest.raises(ValueError, match="a"):
            await fake.use("a")
    await fake.use("b")
    assert fake.models.shelf.used_bytes == 8


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.integers(8, 40), st.lists(st.integers(1, 8), min_size=2))
def test_any_schedule_keeps_the_budget_and_returns_every_byte(
    seed: int, budget: int, sizes: list[int]
) -> None:
    asyncio.run(_schedule(random.Random(seed), budget, {f"m{i}": x for i, x in enumerate(sizes)}))


async def _schedule(rng: random.Random, budget: int, sizes: dict[str, int]) -> None:
    """Random uses, some of them cancelled; `FakeModels` checks the budget at each opening."""
    fake = FakeModels(budget, sizes, patience_s=5.0)
    fake.fails = {name for name in sizes if rng.random() < 0.1}
    tasks = []
    for _ in range(40):
        task = asyncio.create_task(fake.use(rng.choice(list(sizes)), rng.random() / 500))
        tasks.append(task)
        if rng.random() < 0.2:
            asyncio.get_running_loop().call_later(rng.random() / 200, task.cancel)
        await asyncio.sleep(rng.choice((0, 0, rng.random() / 1000)))
    for ended in await asyncio.gather(*tasks, return_exceptions=True):
        assert ended is None or isinstance(ended, ValueError | asyncio.CancelledError)
    await asyncio.sleep(0.01)
    shelf = fake.models.shelf
    assert shelf.used_bytes == fake.bytes <= budget
    assert shelf.leaving_bytes == 0
    assert not any(fake.used.values())


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 9)), max_size=30), st.data())
def test_victims_are_idle_the_longest_unused_and_no_more_than_needed(
    puts: list[tuple[str, int]], data: st.DataObject
) -> None:
    shelf = Shelf(100)
    order: list[str] = []
    sizes: dict[str, int] = {}
    for name, size in puts:
        if name in shelf:
            shelf.touch(name)
            order.remove(name)
        else:
            shelf.take(size)
            shelf.put(name, size)
            sizes[name] = size
        order.append(name)
    used = data.draw(st.sets(st.sampled_from("abcdef")))
    count = data.draw(st.integers(1, 120))
    victims = shelf.victims(count, lambda name: name not in used)
    idle = [name for name in order if name not in used]
    missing = sum(sizes.values()) + count - 100
    if victims is None:
        assert sum(sizes[name] for name in idle) < missing
        return
    assert victims == idle[: len(victims)]
    freed = [sizes[name] for name in victims]
    assert sum(freed) >= missing
    assert not freed or sum(freed[:-1]) < missing
