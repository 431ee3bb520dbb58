"""Prefixes: kept between requests within a bound, and shared inside one."""

import threading
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle.arrays import Ids
from service.decoding.cache_budget import CacheBudget
from service.decoding.prefixes import (
    MAX_LEVELS,
    MIN_SHARED_TOKENS,
    PrefixCache,
    SharedPrefix,
    shared_prefixes,
)
from service.decoding.rows import Continuation

SIZE = 4 * (10 + 6) + 256  # bytes of an entry, with what it takes besides its arrays


def ids(*tokens: int) -> Ids:
    return np.array(tokens, np.uint16)


def leads_to(number: int) -> Continuation:
    return Continuation((np.full((1, 10), number, np.float32),), np.zeros(6, np.float32))


def number_of(found: tuple[int, Continuation] | None) -> tuple[int, int] | None:
    return None if found is None else (found[0], int(found[1].states[0][0, 0]))


def test_the_longest_known_prefix_is_found_up_to_a_length() -> None:
    cache = PrefixCache(CacheBudget(10 * SIZE))
    for length in (1, 3, 5):
        cache.put(ids(*range(length)), leads_to(length))
    cache.put(ids(0, 1, 9, 9), leads_to(100))
    text = ids(0, 1, 2, 3, 4, 5, 6)
    assert number_of(cache.longest(text, 7)) == (5, 5)
    assert number_of(cache.longest(text, 4)) == (3, 3)
    assert number_of(cache.longest(text, 2)) == (1, 1)
    assert cache.longest(text, 0) is None
    assert cache.longest(ids(7, 8), 2) is None


def test_the_least_recently_used_are_forgotten_and_the_bytes_stay_bounded() -> None:
    cache = PrefixCache(CacheBudget(3 * SIZE))
    for token in range(3):
        cache.put(ids(token), leads_to(token))
    assert cache.longest(ids(0, 5), 2) is not None  # used again
    cache.put(ids(3), leads_to(3))
    assert [cache.longest(ids(x), 1) is not None for x in range(4)] == [True, False, True, True]
    assert cache.size_bytes == 3 * SIZE


def test_what_is_put_again_is_used_again_and_keeps_its_first_value() -> None:
    cache = PrefixCache(CacheBudget(2 * SIZE))
    for token, number in ((0, 10), (1, 11), (0, 12), (2, 13)):
        cache.put(ids(token), leads_to(number))
    assert number_of(cache.longest(ids(0), 1)) == (1, 10)
    assert cache.longest(ids(1), 1) is None


def test_without_memory_nothing_is_kept_nor_what_is_larger_than_all_of_it() -> None:
    for size in (0, SIZE - 1):
        cache = PrefixCache(CacheBudget(size))
        cache.put(ids(1), leads_to(1))
        assert cache.longest(ids(1), 1) is None
        assert (len(cache), cache.size_bytes) == (0, 0)


words = st.lists(st.integers(0, 2), max_size=6).map(tuple)


@settings(max_examples=80, deadline=None)
@given(actions=st.lists(st.tuples(st.booleans(), words), max_size=40), room=st.integers(1, 5))
def test_the_cache_is_an_ordered_dictionary_of_bounded_size(
    actions: list[tuple[bool, tuple[int, ...]]], room: int
) -> None:
    cache = PrefixCache(CacheBudget(room * SIZE))
    model: OrderedDict[tuple[int, ...], int] = OrderedDict()
    for number, (puts, word) in enumerate(actions):
        if puts:
            cache.put(ids(*word), leads_to(number))
            model.setdefault(word, number)
            model.move_to_end(word)
            while len(model) > room:
                model.popitem(last=False)
        else:
            known = [word[:n] for n in range(len(word) + 1) if word[:n] in model]
            expected = (len(known[-1]), model[known[-1]]) if known else None
            assert number_of(cache.longest(ids(*word), len(word))) == expected
            if known:
                model.move_to_end(known[-1])
        assert len(cache) == len(model)
        assert cache._lengths == sorted({len(x) for x in model})
        assert cache.size_bytes == len(model) * SIZE


def test_what_is_larger_than_all_of_it_drives_nothing_out() -> None:
    cache = PrefixCache(CacheBudget(2 * SIZE))
    cache.put(ids(1), leads_to(1))
    huge = Continuation((np.zeros((1, 1000), np.float32),), np.zeros(6, np.float32))
    cache.put(ids(2), huge)
    assert cache.longest(ids(2), 1) is None
    assert number_of(cache.longest(ids(1), 1)) == (1, 1)


def test_threads_may_put_and_look_at_the_same_time() -> None:
    cache = PrefixCache(CacheBudget(20 * SIZE))
    wrong: list[object] = []

    def hammer(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(500):
            word = rng.integers(0, 3, rng.integers(1, 5)).tolist()
            cache.put(ids(*word), leads_to(int("".join(map(str, word)), 3) + 81 * len(word)))
            found = number_of(cache.longest(ids(*word), len(word)))
            if found is not None:
                value = int("".join(map(str, word[: found[0]])), 3) + 81 * found[0]
                if found[1] != value:
                    wrong.append(found)

    threads = [threading.Thread(target=hammer, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert cache.size_bytes == len(cache) * SIZE <= 20 * SIZE


# --- inside one request ---------------------------------------------------------------------------

Sequences = list[tuple[int, ...]]
blocks = st.lists(st.integers(0, 1), max_size=5)
# Texts of blocks that are longer than the shortest prefix that is shared.
sequences: st.SearchStrategy[Sequences] = st.lists(
    st.tuples(blocks, st.lists(st.integers(0, 1), max_size=6)).map(
        lambda x: tuple(10 * b for b in x[0] for _ in range(MIN_SHARED_TOKENS)) + tuple(x[1])
    ),
    max_size=8,
)


def shared(texts: Sequences) -> list[SharedPrefix]:
    return shared_prefixes([np.array(text, np.uint32) for text in texts])


def common_length(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


@settings(max_examples=150, deadline=None)
@given(texts=sequences)
def test_what_is_shared_is_common_to_all_members_and_to_no_one_else(texts: Sequences) -> None:
    found = shared(texts)
    for prefix in found:
        start = texts[prefix.members[0]][: prefix.length]
        outside = set(range(len(texts))) - set(prefix.members)
        assert len(start) == prefix.length
        assert len(prefix.members) >= 2
        assert all(texts[i][: prefix.length] == start for i in prefix.members)
        assert not any(texts[i][: prefix.length] == start for i in outside)
        parent = None if prefix.parent is None else found[prefix.parent]
        above = 0 if parent is None else parent.length
        assert prefix.length >= above + MIN_SHARED_TOKENS
        assert prefix.level == (0 if parent is None else parent.level + 1)
        if parent is not None:
            assert set(prefix.members) <= set(parent.members)


@settings(max_examples=150, deadline=None)
@given(texts=sequences)
def test_nothing_long_that_two_texts_share_is_read_twice(texts: Sequences) -> None:
    found = shared(texts)
    for i in range(len(texts)):
        for j in range(i):
            together = [x.length for x in found if {i, j} <= set(x.members)]
            # What is left over is shorter than what would be worth a run.
            left = common_length(texts[i], texts[j]) - max(together, default=0)
            assert left < MIN_SHARED_TOKENS


def test_prefixes_of_prefixes_go_down_to_a_bounded_level() -> None:
    texts = [(1,) * (MIN_SHARED_TOKENS * n) for n in range(1, MAX_LEVELS + 6)]
    found = shared(texts)
    assert [x.level for x in found] == list(range(MAX_LEVELS))


@pytest.mark.parametrize("texts", [[], [(1,) * 99], [(1,) * 99, (2,) * 99], [(1,), (1,)]])
def test_without_a_long_common_beginning_nothing_is_shared(texts: Sequences) -> None:
    assert shared(texts) == []
