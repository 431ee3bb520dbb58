"""A deadline that is set anew with every request, at the price of a comparison."""

import asyncio
from collections.abc import Callable


class Deadline:
    """Calls `passed` when the time is over. One timer, which looks again if it fires early."""

    def __init__(self, loop: asyncio.AbstractEventLoop, passed: Callable[[], None]) -> None:
        self._loop = loop
        self._passed = passed
        self._due: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0

    def begin(self, seconds: float) -> None:
        """Begin it, or begin it again."""
        self._due = due = self._loop.time() + seconds
        if self._timer is not None:
            if self._timer_due <= due:
                return
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self._look)
        self._timer_due = due

    def end(self) -> None:
        """End it; the timer stays, for the next deadline or to fire without effect."""
        self._due = None

    def close(self) -> None:
        """End it for good."""
        self._due = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if self._due is None:
            return
        left_s = self._due - self._loop.time()
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._look)
            self._timer_due = self._due
        else:
            self._due = None
            self._passed()
