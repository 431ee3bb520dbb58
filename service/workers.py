"""A model's workers as the event loop sees them: work handed out, awaited and taken back."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Generic, Protocol, TypeVar

from service.errors import DeadlineExceeded, InvalidRequest
from service.scheduler import Job, Runner, Scheduler, Work
from service.settings import Settings

# Characters of one request from which work on text leaves the event loop's thread.
LARGE_CHARS = 8192
_SEED_BITS = 48  # a seed survives JSON readers that hold numbers as doubles

Result = TypeVar("Result")


class SizedWork(Work, Protocol):
    """Work that can be dealt out by its length."""

    @property
    def remaining(self) -> int:
        """Tokens still to read."""


WorkT = TypeVar("WorkT", bound=SizedWork)


class Workers(Generic[WorkT]):
    """One scheduler a thread, each with a runner of its own; a request's work is dealt out."""

    def __init__(
        self,
        runners: Sequence[Runner[WorkT]],
        names: Sequence[str],
        settings: Settings,
        *,
        max_rows: int,
        packed_rows: int = 0,
    ) -> None:
        """`packed_rows`: lone pieces of work share a worker up to so many rows of it."""
        self.settings = settings
        self._packed_rows = packed_rows
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: dict[Job[WorkT], asyncio.Future[None]] = {}
        self.schedulers = [
            Scheduler(
                runner,
                self._deliver,
                name=name,
                max_rows=max_rows,
                # What a thread's share rounds down to must still hold a row.
                max_queue_rows=max(1, settings.max_queue_rows // len(runners)),
                max_queue_tokens=max(1, settings.max_queue_tokens // len(runners)),
            )
            for runner, name in zip(runners, names, strict=True)
        ]

    def start(self) -> None:
        """Start the workers; call it in the event loop that requests run in."""
        self._loop = asyncio.get_running_loop()
        for scheduler in self.schedulers:
            scheduler.start()

    async def stop(self) -> None:
        """End the workers."""
        for scheduler in self.schedulers:
            await asyncio.to_thread(scheduler.stop)

    @property
    def alive(self) -> bool:
        """Whether every worker takes work."""
        return all(scheduler.alive for scheduler in self.schedulers)

    def age_s(self) -> float:
        """Seconds since the last step of any worker."""
        return time.monotonic() - max(scheduler.last_step for scheduler in self.schedulers)

    async def run(self, works: Sequence[WorkT]) -> None:
        """Run all the work to its end. A caller that is cancelled takes its rows along.

        Raises QueueFull, EngineStopped and ModelFailure.
        """
        if self._loop is None:
            raise RuntimeError("start the engine first")
        futures: dict[Job[WorkT], asyncio.Future[None]] = {}
        shares = self._shared_out(works)
        try:
            for scheduler, share in shares:
                job = Job(share)
                futures[job] = self._waiting[job] = self._loop.create_future()
                scheduler.submit(job)
            pending = set(futures.values())
            while pending:
                if len(pending) == 1:
                    await pending.pop()
                else:
                    _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for job in futures:
                    if job.error is not None:
                        raise job.error
        finally:
            for (scheduler, _), (job, future) in zip(shares, futures.items(), strict=False):
                del self._waiting[job]
                if not future.done() or future.cancelled():
                    scheduler.cancel(job)

    @asynccontextmanager
    async def deadline(self) -> AsyncIterator[None]:
        """The longest time that one request may take. Raises DeadlineExceeded."""
        limit = self.settings.request_timeout_s
        try:
            async with asyncio.timeout(limit):
                yield
        except TimeoutError as error:
            raise DeadlineExceeded(f"a request may take {limit:g} s on this server") from error

    def _shared_out(self, works: Sequence[WorkT]) -> list[tuple[Scheduler[WorkT], list[WorkT]]]:
        """Each piece of work to the worker with the least to do.

        By length, since rows that are read together should end together. A lone piece joins the
        busiest worker that has room for it among its packed rows.
        """
        if not works:
            return []
        loads = [scheduler.load for scheduler in self.schedulers]
        if len(works) == 1:
            room = self._packed_rows - works[0].rows
            busiest = max((load for load in loads if load <= room), default=min(loads))
            return [(self.schedulers[loads.index(busiest)], list(works))]
        shares: list[list[WorkT]] = [[] for _ in self.schedulers]
        for work in sorted(works, key=lambda work: work.remaining, reverse=True):
            least = loads.index(min(loads))
            loads[least] += work.rows
            shares[least].append(work)
        return [pair for pair in zip(self.schedulers, shares, strict=True) if pair[1]]

    def _deliver(self, jobs: list[Job[WorkT]]) -> None:
        """Called in the worker's thread, once an iteration."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._resolve, jobs)

    def _resolve(self, jobs: list[Job[WorkT]]) -> None:
        for job in jobs:
            future = self._waiting.get(job)
            if future is not None and not future.done():
                future.set_result(None)


def drawn_seed(seed: int | None) -> int:
    """The seed that was given, or a fresh one."""
    return secrets.randbits(_SEED_BITS) if seed is None else seed


def worker_names(model: str, threads: int) -> list[str]:
    """What the logs call each worker of a model."""
    return [model] if threads == 1 else [f"{model}-{i}" for i in range(threads)]


def at_most(pointer: str, value: int, limit: int, unit: str) -> None:
    """Raise InvalidRequest where a value is over its limit."""
    if value > limit:
        raise InvalidRequest.at(pointer, f"too many {unit}; at most {limit} are allowed")


async def off_loop(size: int, function: Callable[[], Result]) -> Result:
    """Call the function: at once for a small request, else in a thread, so that no one waits."""
    return function() if size <= LARGE_CHARS else await asyncio.to_thread(function)
