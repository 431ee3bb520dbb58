"""The context of the current request: its ids, client, timeout, times and resources.

It is in a context variable, which the tasks and threads of the request inherit. So none of the
interfaces that call the engine has to pass it on.
"""

import asyncio
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol

from service.observe.byte_budget import ByteBudget


class Held(Protocol):
    """Something that a request keeps alive, such as the engine of one version of a model."""

    holds: int


@dataclass(slots=True, kw_only=True)
class RequestContext:
    """One request. The defaults are for work that does not come from HTTP."""

    request_id: str = ""
    trace_id: str = ""  # 32 hexadecimal digits (W3C Trace Context)
    span_id: str = ""  # 16
    client: str = ""  # name of its API key
    owes_key: bool = False  # its key must be in the body; the route checks it before any work
    timeout_s: float | None = None  # None is the setting's default
    began_at: float = field(default_factory=time.monotonic)
    timed_from: float = field(default_factory=time.monotonic)  # `timeout_s` counts from here
    # Filled in while it is answered:
    queue_s: float = 0.0  # time in the queue
    engine_s: float = 0.0  # time in the engine after that
    outcome: str = ""  # `type` of the error that it ended with
    held: list[Held] = field(default_factory=list)
    bytes_taken: list[tuple[ByteBudget, int]] = field(default_factory=list)
    # Shared by the process: the budget for details, and a lock for building a large answer. None
    # is no limit.
    details: ByteBudget | None = None
    building: asyncio.Lock | None = None
    builds: bool = False

    def hold(self, held: Held) -> None:
        """Keep something alive until the request has been answered."""
        held.holds += 1
        self.held.append(held)

    def take_bytes(self, budget: ByteBudget, count: int) -> bool:
        """Take bytes from a budget until the request has been answered; false if there are none."""
        is_taken = budget.take(count)
        if is_taken:
            self.bytes_taken.append((budget, count))
        return is_taken

    async def begin_building(self) -> None:
        """Wait until no other request builds a large answer, which takes many times its size."""
        if self.building is not None and not self.builds:
            await self.building.acquire()
            self.builds = True

    def end_building(self) -> None:
        """Let the next request build its answer."""
        if self.building is not None and self.builds:
            self.building.release()
            self.builds = False

    def keep_no_details(self) -> None:
        """Give back the bytes taken for details: the answer sends them as they come."""
        kept = [(budget, count) for budget, count in self.bytes_taken if budget is not self.details]
        for budget, count in self.bytes_taken:
            if budget is self.details:
                budget.give_back(count)
        self.bytes_taken = kept

    def release(self) -> None:
        """Release everything that the request holds."""
        self.end_building()
        while self.held:
            self.held.pop().holds -= 1
        while self.bytes_taken:
            budget, count = self.bytes_taken.pop()
            budget.give_back(count)

    def begin_again(self) -> None:
        """Restart the timeout: each part of a stream may take as long as a request."""
        self.timed_from = time.monotonic()


_CURRENT: ContextVar[RequestContext | None] = ContextVar("request", default=None)


def current_request() -> RequestContext:
    """The request of the current task or thread; outside any request, a new context."""
    return _CURRENT.get() or RequestContext()


def enter_request(context: RequestContext) -> None:
    """Make this the current request of the calling task."""
    _CURRENT.set(context)
