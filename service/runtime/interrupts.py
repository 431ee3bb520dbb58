"""Ends the work of a request from outside: its deadline has passed, or its client has gone.

`asyncio.timeout` does the same with a timer for every request, and waiting for a disconnect takes
two tasks. Here the work runs in the request's own task, and one timer serves all deadlines.
"""

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from service.errors import ServiceError


class Interruptible:
    """A part of the current task (`with`) that can be ended with an error at its next await.

    Like `asyncio.timeout`, it cancels the task and turns that into the error, so that cancelling
    the task itself still works.
    """

    __slots__ = ("_cancelling", "_error", "_task")

    def __init__(self) -> None:
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0  # cancellations asked for before this part began
        self._error: ServiceError | None = None

    def interrupt(self, error: ServiceError) -> None:
        """End the part, if it still runs; the first error counts. Call it in the event loop."""
        if self._task is not None and self._error is None:
            self._error = error
            self._task.cancel()

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("only a task can be interrupted")
        self._task, self._cancelling = task, task.cancelling()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        raised: BaseException | None,
        _: TracebackType | None,
    ) -> None:
        task, self._task = self._task, None
        if task is None or self._error is None:
            return
        is_ours = task.uncancel() <= self._cancelling
        if is_ours and isinstance(raised, asyncio.CancelledError):
            raise self._error from raised


class Deadlines:
    """The deadlines of the requests in one event loop, on one timer."""

    def __init__(self) -> None:
        self._open: dict[Deadline, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._looks_at = 0.0  # time.monotonic() of the timer

    def at(self, ends_at: float, error: Callable[[], ServiceError]) -> "Deadline":
        """A part of a task that ends with `error` at this time (time.monotonic)."""
        return Deadline(self, ends_at, error)

    def add(self, part: "Deadline") -> None:
        """Watch a part."""
        self._open[part] = part.ends_at
        if self._timer is None or part.ends_at < self._looks_at:
            self._look_at(part.ends_at)

    def discard(self, part: "Deadline") -> None:
        """Stop watching a part. The timer stays while others are watched."""
        del self._open[part]
        if not self._open and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_at(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._looks_at = when
        delay_s = max(0.0, when - time.monotonic())
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._look)

    def _look(self) -> None:
        """End what is due, and look again when the next part is."""
        self._timer = None
        now = time.monotonic()
        left: list[float] = []
        for part, ends_at in self._open.items():
            if ends_at > now:
                left.append(ends_at)
            else:
                part.end()
        if left:
            self._look_at(min(left))


class Deadline(Interruptible):
    """A part of a task with a deadline; `Deadlines.at` makes it."""

    __slots__ = ("_deadlines", "_late", "ends_at")

    def __init__(
        self, deadlines: Deadlines, ends_at: float, late: Callable[[], ServiceError]
    ) -> None:
        super().__init__()
        self._deadlines = deadlines
        self._late = late
        self.ends_at = ends_at

    def end(self) -> None:
        """End it: its time has passed."""
        self.interrupt(self._late())

    def __enter__(self) -> Self:
        super().__enter__()
        self._deadlines.add(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        raised: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._deadlines.discard(self)
        super().__exit__(kind, raised, trace)
