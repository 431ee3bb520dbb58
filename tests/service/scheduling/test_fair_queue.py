"""Clients share what is served, whatever each of them asks for."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.scheduling.fair_queue import FairQueue


def drained(queue: FairQueue[tuple[str, int]], count: int | None = None) -> list[tuple[str, int]]:
    return [queue.pop() for _ in range(len(queue) if count is None else count)]


def test_one_client_is_served_in_order() -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for i in range(5):
        queue.push("a", 1 + i % 3, ("a", i))
    assert drained(queue) == [("a", i) for i in range(5)]


def test_a_client_with_much_in_the_queue_does_not_hold_up_another() -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for i in range(100):
        queue.push("many", 10, ("many", i))
    queue.push("one", 10, ("one", 0))
    assert ("one", 0) in drained(queue, 2)


def test_shares_are_of_tokens_and_not_of_requests() -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for i in range(300):
        queue.push("long", 30, ("long", i))
        queue.push("short", 10, ("short", i))
    served = Counter(client for client, _ in drained(queue, 200))
    assert served["short"] == pytest.approx(3 * served["long"], abs=3)


def test_who_comes_late_has_saved_nothing_up() -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for i in range(200):
        queue.push("early", 1, ("early", i))
    drained(queue, 100)
    for i in range(100):
        queue.push("late", 1, ("late", i))
    served = Counter(client for client, _ in drained(queue, 100))
    assert abs(served["late"] - served["early"]) <= 2


def test_what_is_removed_costs_nothing() -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for i in range(10):
        queue.push("a", 1000, ("a", i))
    queue.push("a", 1, ("a", 10))
    queue.push("b", 1, ("b", 0))
    queue.remove(lambda item: item[0] == "a" and item[1] < 10)
    assert len(queue) == 2
    assert sorted(drained(queue)) == [("a", 10), ("b", 0)]


def test_an_empty_queue_gives_nothing() -> None:
    queue: FairQueue[str] = FairQueue()
    with pytest.raises(ValueError, match="empty"):
        queue.pop()


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("push"), st.sampled_from("abc"), st.integers(1, 50)),
            st.tuples(st.just("pop"), st.just(""), st.just(0)),
        ),
        max_size=200,
    )
)
def test_nothing_is_lost_and_each_client_is_served_in_order(
    steps: list[tuple[str, str, int]],
) -> None:
    queue: FairQueue[tuple[str, int, int]] = FairQueue()
    waiting: list[tuple[str, int, int]] = []
    for number, (what, client, cost) in enumerate(steps):
        if what == "push":
            queue.push(client, cost, (client, number, cost))
            waiting.append((client, number, cost))
        elif waiting:
            taken = queue.pop()
            # The first of its client's, and never one that is not there.
            assert taken == next(x for x in waiting if x[0] == taken[0])
            waiting.remove(taken)
        assert len(queue) == len(waiting)
        assert sorted(queue) == sorted(waiting)


@given(
    st.dictionaries(
        st.sampled_from("abcd"), st.lists(st.integers(1, 50), min_size=1, max_size=40), min_size=2
    )
)
def test_clients_that_have_work_all_along_get_alike(costs: dict[str, list[int]]) -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for client, pieces in costs.items():
        for cost in pieces:
            queue.push(client, cost, (client, cost))
    served = Counter(dict.fromkeys(costs, 0))
    left = {client: len(pieces) for client, pieces in costs.items()}
    most = max(cost for pieces in costs.values() for cost in pieces)
    while all(left.values()):
        client, cost = queue.pop()
        served[client] += cost
        left[client] -= 1
        # The bound of the paper: a piece of each.
        assert max(served.values()) - min(served.values()) <= 2 * most
