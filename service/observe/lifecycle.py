"""Where the process stands between its start and its end, for everyone who has to know."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal


@dataclass(slots=True)
class Lifecycle:
    """Written by who ends the process and by the watchdog, read by routes; one thread."""

    # serving; leaving: /readyz says 503 and all is answered; draining: nothing new is taken.
    phase: Literal["serving", "leaving", "draining"] = "serving"
    # What answers requests now, a task each.
    answering: set[asyncio.Task[object]] = field(default_factory=set)
    is_cut: bool = False  # whether what is still answering has been cancelled
    fatal: str | None = None  # why the process has to end and be started anew

    @property
    def in_flight(self) -> int:
        """Requests that are being answered."""
        return len(self.answering)

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request while the task that answers it is in here."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("requests are answered in tasks")
        self.answering.add(task)
        try:
            yield
        finally:
            self.answering.discard(task)

    def cut(self) -> None:
        """Cancel what is still answering: its time is over."""
        self.is_cut = True
        for task in self.answering:
            task.cancel()

    @property
    def reasons(self) -> list[str]:
        """Why no traffic should come; empty where it should."""
        reasons = [] if self.fatal is None else [self.fatal]
        return reasons if self.phase == "serving" else [*reasons, "the server is shutting down"]
