"""The life cycle of the process: serving, leaving or draining; and the requests in flight."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal


@dataclass(slots=True)
class Lifecycle:
    """The state. `Drain` and the watchdog write it, routes read it; in the event loop only."""

    # leaving: /readyz answers 503, everything else works; draining: new connections are refused,
    # and so are requests on connections that were idle when it began.
    phase: Literal["serving", "leaving", "draining"] = "serving"
    draining_since: float = float("inf")  # time.perf_counter()
    # The tasks that answer requests now, one for each.
    answering: set[asyncio.Task[object]] = field(default_factory=set)
    is_cut: bool = False  # whether the requests still open have been cancelled
    fatal: str | None = None  # why the process must end and be restarted

    @property
    def in_flight(self) -> int:
        """The number of requests being answered."""
        return len(self.answering)

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request as in flight while its task is inside this context."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("requests are answered in tasks")
        self.answering.add(task)
        try:
            yield
        finally:
            self.answering.discard(task)

    def drain(self) -> None:
        """Enter the phase in which nothing new is taken."""
        self.phase, self.draining_since = "draining", time.perf_counter()

    def cut(self) -> None:
        """Cancel the requests still open: the grace time is over."""
        self.is_cut = True
        for task in self.answering:
            task.cancel()

    @property
    def reasons(self) -> list[str]:
        """Why /readyz answers 503; empty if the server is ready."""
        reasons = [] if self.fatal is None else [self.fatal]
        return reasons if self.phase == "serving" else [*reasons, "the server is shutting down"]
