"""One bound on what all models keep: the least recently used goes first, whoever has it."""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as tried
from hypothesis import strategies as st

from service.app import create_app
from service.decoding.cache_budget import Cache, CacheBudget
from service.decoding.constraints import AllowedChars
from service.settings import Settings
from service.tasks.values import GenerateOptions
from tests.fakes import AppClient

LONG = "the white rabbit put on his spectacles"

keys = st.integers(0, 4)
models = st.integers(0, 2)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("put"), models, keys, st.integers(0, 60)),
        st.tuples(st.just("get"), models, keys, st.just(0)),
        st.tuples(st.just("end"), models, keys, st.just(0)),
    ),
    max_size=60,
)


class Expected:
    """One ordered dictionary of what all models keep."""

    def __init__(self, room: int) -> None:
        self.kept: OrderedDict[tuple[int, int], tuple[str, int]] = OrderedDict()
        self._room = room

    @property
    def size(self) -> int:
        return sum(size for _, size in self.kept.values())

    def put(self, at: tuple[int, int], value: str, size: int) -> None:
        if size <= self._room:
            self.kept.setdefault(at, (value, size))
            self.kept.move_to_end(at)
        while self.size > self._room:
            self.kept.popitem(last=False)

    def get(self, at: tuple[int, int]) -> str | None:
        if at not in self.kept:
            return None
        self.kept.move_to_end(at)
        return self.kept[at][0]

    def end(self, model: int) -> None:
        for at in [x for x in self.kept if x[0] == model]:
            del self.kept[at]


@tried(max_examples=150, deadline=None)
@given(actions=actions, room=st.integers(0, 150))
def test_the_whole_is_never_over_the_budget_whatever_models_do(
    actions: list[tuple[str, int, int, int]], room: int
) -> None:
    budget, expected = CacheBudget(room), Expected(room)
    told: set[tuple[int, int]] = set()  # what is kept, as the caches' owners know it

    def cache_of(model: int) -> Cache[int, str]:
        return Cache(
            budget, lambda key: told.add((model, key)), lambda key: told.remove((model, key))
        )

    caches = [cache_of(model) for model in range(3)]
    for i, (what, model, key, size) in enumerate(actions):
        cache = caches[model]
        if what == "put":
            cache.put(key, f"{i}", size)
            expected.put((model, key), f"{i}", size)
        elif what == "get":
            assert cache.get(key) == expected.get((model, key))
        else:
            cache.close()
            cache.put(key, "what comes after its end", 1)
            expected.end(model)
            caches[model] = cache_of(model)
        assert budget.size_bytes == expected.size <= room
        assert sum(x.size_bytes for x in caches) == budget.size_bytes
        assert told == expected.kept.keys()


class Guarded(OrderedDict[Any, Any]):
    """Entries that are touched under the lock alone."""

    def __init__(self, budget: CacheBudget) -> None:
        super().__init__()
        self._budget = budget

    def __contains__(self, key: object) -> bool:
        assert self._budget._lock.locked()
        return super().__contains__(key)

    def __getitem__(self, key: Any) -> Any:
        assert self._budget._lock.locked()
        return super().__getitem__(key)

    def __setitem__(self, key: Any, value: Any) -> None:
        assert self._budget._lock.locked()
        super().__setitem__(key, value)


def test_entries_are_touched_under_the_lock_alone() -> None:
    budget = CacheBudget(2)
    budget._entries = Guarded(budget)
    one: Cache[int, str] = Cache(budget)
    other: Cache[int, str] = Cache(budget)
    for key in (0, 1, 0, 2, 3):
        one.put(key, "x", 1)
        other.put(key, "y", 1)
        assert (one.get(key), other.get(key), one.get(9)) == ("x", "y", None)
    one.close()
    assert other.get(3) == "y"


def test_models_may_put_look_and_end_at_the_same_time() -> None:
    budget = CacheBudget(200)
    most: list[int] = []

    def hammer(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(20):
            cache: Cache[int, int] = Cache(budget)
            for key in rng.integers(0, 20, 40).tolist():
                cache.put(key, key, key)
                assert cache.get(key) in {None, key}
                most.append(budget.size_bytes)
            cache.close()
            assert cache.size_bytes == 0

    with_errors: list[BaseException] = []
    threads = [threading.Thread(target=_noting(hammer, i, with_errors)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not with_errors
    assert 0 < max(most) <= 200
    assert (len(budget), budget.size_bytes) == (0, 0)


def _noting(
    work: Callable[[int], None], seed: int, errors: list[BaseException]
) -> Callable[[], None]:
    def run() -> None:
        try:
            work(seed)
        except AssertionError as error:
            errors.append(error)

    return run


@pytest.mark.parametrize("room", [3000, 2**20])
def test_the_models_of_a_server_share_its_budget(models_dir: Path, room: int) -> None:
    """With room for few prefixes, what one model reads drives out what the other did."""
    with AppClient(create_app(Settings(models_dir=models_dir, prefix_cache_bytes=room))) as client:

        def cached(model: str, prompt: str) -> int:
            answer = client.ask("/generate", model=model, prompt=prompt, max_tokens=0)
            return int(answer["usage"]["cached_tokens"])

        budget = client.app.state.registry.budgets.prefixes
        cached("tiny-lstm", LONG)
        assert cached("tiny-lstm", LONG) == len(LONG)
        for i in range(12):
            cached("tiny-gru", f"{LONG} {'ab'[i % 2] * i}")
            assert 0 < budget.size_bytes <= room
        assert cached("tiny-lstm", LONG) == (len(LONG) if room == 2**20 else 0)


def test_a_model_that_ends_gives_its_memory_back(models_dir: Path) -> None:
    async def run() -> None:
        app = create_app(Settings(models_dir=models_dir))
        registry = app.state.registry
        registry.load_all()
        await registry.start()
        budgets = registry.budgets
        engines = [registry.engines[name] for name in ("tiny-lstm", "tiny-gru")]
        for engine in engines:
            await engine.generate([LONG], GenerateOptions(max_tokens=5, rule=AllowedChars("abc")))
        both = budgets.prefixes.size_bytes, budgets.patterns.size_bytes
        await engines[0].stop()
        assert 0 < budgets.prefixes.size_bytes < both[0]
        assert 0 < budgets.patterns.size_bytes < both[1]
        await registry.stop()
        assert (budgets.prefixes.size_bytes, budgets.patterns.size_bytes) == (0, 0)

    asyncio.run(run())
