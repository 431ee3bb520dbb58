"""A deadline set again and again costs one timer, and passes at the last time that was set."""

import asyncio
from collections.abc import Callable
from typing import cast

from service.http.deadline import Deadline


class Clock:
    """An event loop whose time is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, call: Callable[[], None]) -> "Timer":
        self.timers.append(Timer(self.now + seconds, call))
        return self.timers[-1]

    def go_to(self, now: float) -> None:
        """Fire what is due until then."""
        while due := [x for x in self.timers if x.at <= now and x.is_set]:
            timer = min(due, key=lambda x: x.at)
            self.now, timer.is_set = timer.at, False
            timer.call()
        self.now = now


class Timer:
    def __init__(self, at: float, call: Callable[[], None]) -> None:
        self.at, self.call, self.is_set = at, call, True

    def cancel(self) -> None:
        self.is_set = False


def made() -> tuple[Clock, Deadline, list[float]]:
    clock, passed = Clock(), list[float]()
    loop = cast("asyncio.AbstractEventLoop", clock)
    return clock, Deadline(loop, lambda: passed.append(clock.now)), passed


def test_it_passes_once_at_the_last_time_that_was_set() -> None:
    clock, deadline, passed = made()
    for now in range(100):
        clock.go_to(now)
        deadline.begin(5.0)
    assert len(clock.timers) <= 30
    clock.go_to(500.0)
    assert passed == [104.0]


def test_an_earlier_time_comes_first_and_one_that_has_ended_never() -> None:
    clock, deadline, passed = made()
    deadline.begin(50.0)
    deadline.begin(3.0)
    clock.go_to(10.0)
    assert passed == [3.0]
    deadline.begin(1.0)
    deadline.end()
    clock.go_to(100.0)
    deadline.begin(1.0)
    deadline.close()
    clock.go_to(200.0)
    assert passed == [3.0]
    assert not any(x.is_set for x in clock.timers)
