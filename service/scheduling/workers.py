"""A model's worker threads, as the event loop uses them: submit work, await it, cancel it."""

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, Protocol, TypeVar

from service.errors import DeadlineExceeded, EngineStopped, QueueFull
from service.observe.engine_gauges import EngineGauges
from service.observe.metrics import EngineMetrics, Metrics
from service.observe.request_context import RequestContext, current_request
from service.runtime.interrupts import Deadline, Deadlines
from service.runtime.threads import LARGE_CHARS, off_loop
from service.scheduling.admission import RETRY_AFTER_S, QueueBounds
from service.scheduling.scheduler import Job, Runner, Scheduler, Work
from service.settings import Settings

# Larger answers are built one at a time: the objects of one can take 0.2 GB for a moment.
_LARGE_ANSWER = 4 * LARGE_CHARS

Result = TypeVar("Result")


class SizedWork(Work, Protocol):
    """Work that can be shared out by its length."""

    @property
    def remaining(self) -> int:
        """Tokens still to read."""


WorkT = TypeVar("WorkT", bound=SizedWork)


class Workers(Generic[WorkT]):
    """One scheduler for each thread, each with its own runner; a request's work is shared out."""

    def __init__(
        self,
        make_runner: Callable[[str], Runner[WorkT]],
        model: str,
        settings: Settings,
        *,
        threads: int,
        max_rows: int,
        metrics: Metrics | None,
        packed_rows: int = 0,
    ) -> None:
        """Single pieces of work share a worker until it holds `packed_rows` rows."""
        self._settings = settings
        self.metrics = EngineMetrics(metrics or Metrics(), model)
        self._make_runner = make_runner
        self._names = [model] if threads == 1 else [f"{model}-{i}" for i in range(threads)]
        self._max_rows = max_rows
        self._packed_rows = packed_rows
        # A thread's share must hold at least one request, even when it rounds down to 0.
        self._bounds = QueueBounds(
            requests=max(1, settings.max_queue_requests // threads),
            rows=max(1, settings.max_queue_rows // threads),
            tokens=max(1, settings.max_queue_tokens // threads),
            wait_s=settings.max_queue_s,
            # Without keys everyone is one client.
            client_share=1.0 if settings.api_keys_file is None else settings.max_queue_share,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._deadlines = Deadlines()
        self._waiting: dict[Job[WorkT], asyncio.Future[None]] = {}
        self.schedulers = [self._scheduler(name) for name in self._names]

    def _scheduler(self, name: str) -> Scheduler[WorkT]:
        return Scheduler(
            self._make_runner(name),
            self._deliver,
            name=name,
            max_rows=self._max_rows,
            bounds=self._bounds,
            metrics=self.metrics,
        )

    def start(self) -> None:
        """Start the workers; call it in the event loop that requests run in."""
        self._loop = asyncio.get_running_loop()
        for scheduler in self.schedulers:
            scheduler.start()

    async def stop(self, timeout_s: float | None = None) -> None:
        """End the workers; one that hangs in a step is abandoned after `timeout_s`."""
        for scheduler in self.schedulers:
            await asyncio.to_thread(scheduler.stop, timeout_s)

    def restart_dead(self) -> int:
        """Replace the workers that died; return their number."""
        dead = [i for i, scheduler in enumerate(self.schedulers) if scheduler.died]
        for i in dead:
            self.schedulers[i] = self._scheduler(self._names[i])
            self.schedulers[i].start()
            self.metrics.restarted()
        return len(dead)

    def abandon(self) -> None:
        """Fail all jobs that are waited for, since a worker hangs."""
        headers = {"Retry-After": str(RETRY_AFTER_S)}
        for job, future in self._waiting.items():
            job.error = job.error or EngineStopped("the engine hangs", headers=headers)
            if not future.done():
                future.set_result(None)

    @property
    def alive(self) -> bool:
        """Whether every worker accepts work."""
        return all(scheduler.alive for scheduler in self.schedulers)

    def look(self, ran_s: float) -> None:
        """Count the time `ran_s` of the process towards the current steps (`Scheduler.look`)."""
        for scheduler in self.schedulers:
            scheduler.look(ran_s)

    def stalled_s(self) -> float:
        """How long the longest of the current steps has been seen to run."""
        return max(scheduler.stalled_s() for scheduler in self.schedulers)

    def gauges(self) -> EngineGauges:
        """A snapshot of all workers together, for the metrics."""
        each = [scheduler.gauges() for scheduler in self.schedulers]
        return EngineGauges(
            running_rows=sum(x.running_rows for x in each),
            queued_rows=sum(x.queued_rows for x in each),
            queued_requests=sum(x.queued_requests for x in each),
            queued_tokens=sum(x.queued_tokens for x in each),
            stalled_s=max(x.stalled_s for x in each),
        )

    def age_s(self) -> float:
        """Seconds since the last step of any worker."""
        return time.monotonic() - max(scheduler.last_step for scheduler in self.schedulers)

    def refusal(self, client: str) -> QueueFull | None:
        """The error the smallest possible request would get, or None."""
        first: QueueFull | None = None
        for scheduler in self.schedulers:
            refusal = scheduler.refusal(client)
            if refusal is None:
                return None
            first = first or refusal
        return first

    def refuse_if_full(self) -> None:
        """Raise QueueFull early, before the work of a request is prepared in vain."""
        full = self.refusal(current_request().client)
        if full is not None:
            raise full

    async def run(self, works: Sequence[WorkT]) -> None:
        """Run all work to its end. If the caller is cancelled, its rows leave.

        Raises QueueFull, EngineStopped and ModelFailure.
        """
        if self._loop is None:
            raise RuntimeError("start the engine first")
        request = current_request()
        futures: dict[Job[WorkT], asyncio.Future[None]] = {}
        shares = self._shared_out(works)
        try:
            for scheduler, share in shares:
                job = Job(share, client=request.client, deadline=self._ends_at(request))
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
            _count_time(request, list(futures))
            for (scheduler, _), (job, future) in zip(shares, futures.items(), strict=False):
                del self._waiting[job]
                if not future.done() or future.cancelled():
                    scheduler.cancel(job)

    def deadline(self) -> Deadline:
        """Limits the time of the current request (`with`). Raises DeadlineExceeded."""
        request = current_request()
        return self._deadlines.at(self._ends_at(request), partial(self._late, request))

    def _late(self, request: RequestContext) -> DeadlineExceeded:
        return DeadlineExceeded(f"this request may take {self._limit_s(request):g} s")

    async def built(self, size: int, function: Callable[[], Result]) -> Result:
        """Run `function`, which builds an answer of this size; large answers one at a time.

        Raises DeadlineExceeded. Call `end_building` once the answer has been written.
        """
        if size > _LARGE_ANSWER:
            with self.deadline():
                await current_request().begin_building()
        return await off_loop(size, function)

    def _limit_s(self, request: RequestContext) -> float:
        limit_s = self._settings.request_timeout_s
        return limit_s if request.timeout_s is None else min(limit_s, request.timeout_s)

    def _ends_at(self, request: RequestContext) -> float:
        return request.timed_from + self._limit_s(request)

    def _shared_out(self, works: Sequence[WorkT]) -> list[tuple[Scheduler[WorkT], list[WorkT]]]:
        """Give each piece of work to the worker with the least to do.

        Longest first, since rows that are read together should end together. A single piece joins
        the busiest worker that has room for it among its packed rows.
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
        """Called in the worker's thread, once in each iteration."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._resolve, jobs)

    def _resolve(self, jobs: list[Job[WorkT]]) -> None:
        for job in jobs:
            future = self._waiting.get(job)
            if future is not None and not future.done():
                future.set_result(None)


def _count_time(request: RequestContext, jobs: Sequence[Job[WorkT]]) -> None:
    """Add the time in queue and engine to a request; the jobs of one call run side by side."""
    waited = [job.admitted_at - job.submitted_at for job in jobs if job.admitted_at is not None]
    took = [
        job.ended_at - job.admitted_at
        for job in jobs
        if job.admitted_at is not None and job.ended_at is not None
    ]
    request.queue_s += max(waited, default=0.0)
    request.engine_s += max(took, default=0.0)
