"""The request that is being answered: who asks, until when, and what has come of it so far.

Held in a context variable, which tasks and threads that answer the request inherit: the engine is
asked by nine interfaces, and none of them has to hand it on.
"""

import asyncio
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol

from service.observe.byte_budget import ByteBudget


class Held(Protocol):
    """What a request holds while it is answered, such as the engine of a version of a model."""

    holds: int


@dataclass(slots=True, kw_only=True)
class RequestContext:
    """One request. The defaults are those of work that nobody asked for over HTTP."""

    request_id: str = ""
    trace_id: str = ""  # 32 hexadecimal digits (W3C Trace Context)
    span_id: str = ""  # 16
    client: str = ""  # name of its API key
    owes_key: bool = False  # it has to be in the body; nothing is done until it was found there
    timeout_s: float | None = None  # None is the setting's
    began_at: float = field(default_factory=time.monotonic)
    timed_from: float = field(default_factory=time.monotonic)  # `timeout_s` counts from here
    # What answering fills in:
    queue_s: float = 0.0  # waited for a place beside other work
    engine_s: float = 0.0  # in the engine after that
    outcome: str = ""  # `type` of the error that it ended with
    held: list[Held] = field(default_factory=list)
    bytes_taken: list[tuple[ByteBudget, int]] = field(default_factory=list)
    # Of the process: details of answers in hand, and who builds a large answer. None: no bound.
    details: ByteBudget | None = None
    building: asyncio.Lock | None = None
    builds: bool = False

    def hold(self, held: Held) -> None:
        """Keep something until the request has been answered."""
        held.holds += 1
        self.held.append(held)

    def take_bytes(self, budget: ByteBudget, count: int) -> bool:
        """Take bytes of a budget, if they are there, until the request has been answered."""
        is_taken = budget.take(count)
        if is_taken:
            self.bytes_taken.append((budget, count))
        return is_taken

    async def begin_building(self) -> None:
        """Wait until nobody else builds a large answer, which takes many times what is sent."""
        if self.building is not None and not self.builds:
            await self.building.acquire()
            self.builds = True

    def end_building(self) -> None:
        """Let others build theirs."""
        if self.building is not None and self.builds:
            self.building.release()
            self.builds = False

    def keep_no_details(self) -> None:
        """Give back the room for details: they are sent as they come."""
        kept = [(budget, count) for budget, count in self.bytes_taken if budget is not self.details]
        for budget, count in self.bytes_taken:
            if budget is self.details:
                budget.give_back(count)
        self.bytes_taken = kept

    def release(self) -> None:
        """Let go of everything."""
        self.end_building()
        while self.held:
            self.held.pop().holds -= 1
        while self.bytes_taken:
            budget, count = self.bytes_taken.pop()
            budget.give_back(count)

    def begin_again(self) -> None:
        """Count the time from now: each part of a stream has the time of a request."""
        self.timed_from = time.monotonic()


_CURRENT: ContextVar[RequestContext | None] = ContextVar("request", default=None)


def current_request() -> RequestContext:
    """The request that is being answered here; a new one where there is none."""
    return _CURRENT.get() or RequestContext()


def enter_request(context: RequestContext) -> None:
    """Answer this request in the task that calls."""
    _CURRENT.set(context)
