"""Continuous batching: one bounded queue and one worker thread that steps all admitted work.

The queue has limits on requests, rows and tokens, is fair between clients, and drops work whose
deadline has passed without running it.

A runner, one for each kind of model, decides what a step is. Requests of different clients share
every model run, and rows join and leave between any two runs. A recurrent state has a fixed size,
so continuous batching takes no more than this: cellular batching (Gao et al., BatchMaker, EuroSys
2018).
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from service.errors import DeadlineExceeded, QueueFull, ServiceError
from service.observe.engine_gauges import EngineGauges
from service.observe.metrics import EngineMetrics
from service.scheduling.admission import (
    COUNTED_EVERY_S,
    SMALLEST,
    Admission,
    Held,
    QueueBounds,
)
from service.scheduling.failures import engine_stopped
from service.scheduling.fair_queue import FairQueue

logger = logging.getLogger(__name__)


class Work(Protocol):
    """One input of a request."""

    @property
    def rows(self) -> int:
        """The most rows it holds at any time."""

    @property
    def queued_tokens(self) -> int:
        """Tokens that it counts towards the queue's limit."""

    @property
    def first_token_at(self) -> float | None:
        """When it had its first token (time.monotonic); None if it writes none."""

    @property
    def written_tokens(self) -> int:
        """Tokens that it has written one after another; rows written side by side count once."""


WorkT = TypeVar("WorkT", bound=Work)


class Runner(Protocol[WorkT]):
    """Steps all admitted work of one worker together and returns the work that ended."""

    @property
    def used_rows(self) -> int:
        """Rows that the admitted work holds now."""

    @property
    def free(self) -> bool:
        """Whether it holds no work and no row, counted apart from `used_rows`."""

    def admit(self, work: Sequence[WorkT]) -> None:
        """Add work, which joins before the next step."""

    def run(self) -> list[tuple[WorkT, ServiceError | None]]:
        """Run one step; return the work that ended and left, each with its error or None.

        A model run that raises fails the work in it. An exception from this method ends the worker.
        """

    def drop(self, work: Sequence[WorkT]) -> None:
        """Remove admitted work unfinished; work that ended in this step has left already."""

    def clear(self) -> None:
        """Drop all work: the worker has ended."""


@dataclass(slots=True, eq=False)
class Job(Generic[WorkT]):
    """One request's work; the runner fills in its rows, the scheduler `error` and the times."""

    work: Sequence[WorkT]
    client: str = ""  # the client whose share of the queue it takes
    deadline: float | None = None  # time.monotonic(); work still queued then is not run
    error: ServiceError | None = None
    open_work: int = 0
    queued_work: int = 0
    cancelled: bool = False
    delivered: bool = False
    submitted_at: float = 0.0
    admitted_at: float | None = None  # when its first work left the queue
    ended_at: float | None = None


class Scheduler(Generic[WorkT]):
    """Runs jobs on a runner. `submit` and `cancel` may be called from any thread.

    `deliver` is called in the worker's thread with all jobs that ended in one iteration.
    """

    def __init__(
        self,
        runner: Runner[WorkT],
        deliver: Callable[[list[Job[WorkT]]], None],
        *,
        name: str,
        max_rows: int,
        bounds: QueueBounds,
        metrics: EngineMetrics,
    ) -> None:
        self._runner = runner
        self._deliver = deliver
        self._name = name
        self._max_rows = max_rows
        self._metrics = metrics
        self._wake = threading.Condition()
        # Guarded by _wake:
        self._queue: FairQueue[tuple[Job[WorkT], WorkT]] = FairQueue()
        self._admission = Admission(bounds)
        self._cancelling: list[Job[WorkT]] = []
        self._stopping = False
        self._dead = False
        # The worker's own:
        self._active: dict[int, tuple[Job[WorkT], WorkT]] = {}  # by id of the work
        self._ended: list[Job[WorkT]] = []
        self._late: list[Job[WorkT]] = []  # their deadline passed in the queue
        self._running_tokens = 0  # of the active work, as the queue counts them
        self._step_began: float | None = None
        self._watched_step: float | None = None  # the step that ran at the last `look`
        self._stalled_s = 0.0  # how long that step has been seen to run
        self._counted_to = time.monotonic()  # the end of the time that the rate has counted
        self.last_step = time.monotonic()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the worker."""
        # Made here and not before: in a process that was forked meanwhile, it could not start.
        self._thread = threading.Thread(target=self._work, name=f"engine-{self._name}", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float | None = None) -> None:
        """End the worker; queued and running work fails with EngineStopped.

        A worker that hangs in a step is abandoned after `timeout_s`.
        """
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join(timeout_s)

    @property
    def alive(self) -> bool:
        """Whether the worker accepts work."""
        runs = self._thread is not None and self._thread.is_alive()
        return runs and not self._stopping and not self._dead

    @property
    def died(self) -> bool:
        """Whether the worker has ended without `stop`."""
        return self._dead and not self._stopping

    def look(self, ran_s: float) -> None:
        """Count `ran_s` towards the current step if it was already running at the last look.

        A watchdog calls this at intervals; `ran_s` is how long this process ran since its last
        call. The clock cannot say that: it goes on while a process is stopped or a container is
        frozen.
        """
        began = self._step_began
        is_same = began is not None and began == self._watched_step
        self._stalled_s = self._stalled_s + ran_s if is_same else 0.0
        self._watched_step = began

    def stalled_s(self) -> float:
        """How long the current step has been seen to run; 0 between steps."""
        began = self._step_began
        return self._stalled_s if began is not None and began == self._watched_step else 0.0

    @property
    def load(self) -> int:
        """Rows that are queued or running, and so ahead of new work."""
        return self._admission.waiting_rows + self._runner.used_rows

    def gauges(self) -> EngineGauges:
        """A snapshot for the metrics."""
        with self._wake:
            waiting = self._admission.waiting
        return EngineGauges(
            running_rows=self._runner.used_rows,
            queued_rows=waiting.rows,
            queued_requests=waiting.requests,
            queued_tokens=waiting.tokens,
            stalled_s=self.stalled_s(),
        )

    @property
    def free(self) -> bool:
        """Whether nothing is queued or running, as must be true when no request is open."""
        return self._runner.free and not (self._queue or self._active)

    def submit(self, job: Job[WorkT]) -> None:
        """Queue all work of a job or none. Raises QueueFull and EngineStopped."""
        asked = _size_of(job.work)
        with self._wake:
            if not self.alive:
                raise engine_stopped()
            self._admission.check(job.client, asked, self._running_tokens)
            job.open_work = job.queued_work = len(job.work)
            job.submitted_at = time.monotonic()
            for work in job.work:
                self._queue.push(job.client, max(1, work.queued_tokens), (job, work))
            self._admission.join(job.client, asked)
            self._wake.notify()

    def refusal(self, client: str) -> QueueFull | None:
        """The error that the smallest possible job would get now (without the lock), or None."""
        try:
            self._admission.check(client, SMALLEST, self._running_tokens)
        except QueueFull as full:
            return full
        return None

    def cancel(self, job: Job[WorkT]) -> None:
        """Remove a job's rows before the next step. A job that has ended is left alone."""
        with self._wake:
            if not self._dead:
                self._cancelling.append(job)
                self._wake.notify()

    # --- the worker's thread --------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while self._admit():
                self._step()
                self._hand_back()
        except BaseException:
            # A bug here ends the worker; `_fail_everything` then fails every request that waits.
            logger.exception("engine %s: the worker died", self._name)
        finally:
            self._fail_everything()

    def _step(self) -> None:
        """Run one step of the runner and count the work that ended."""
        rows, began = self._runner.used_rows, time.monotonic()
        self._step_began = began
        done = 0
        for work, error in self._runner.run():
            done += work.queued_tokens
            self._end_work(work, error)
        ended = time.monotonic()
        self._step_began, self.last_step = None, ended
        # Includes the time between the steps: queued work waits during it, too.
        uncounted_s = ended - self._counted_to
        if done or uncounted_s > COUNTED_EVERY_S:
            self._admission.rate.add(done, uncounted_s)
            self._counted_to = ended
        if rows:
            self._metrics.stepped(ended - began, rows)

    def _admit(self) -> bool:
        """Wait for work, drop cancelled rows, take rows from the queue; false when stopping."""
        if self._active and not (self._queue or self._cancelling or self._stopping):
            return True  # nothing has come; what comes now is seen before the next step
        with self._wake:
            while not (self._queue or self._active or self._cancelling or self._stopping):
                self._wake.wait()
                self._counted_to = time.monotonic()
            if self._stopping:
                return False
            cancelled = self._leave_queue()
            taken = self._take_from_queue()
        late, self._late = self._late, []
        for job in [*cancelled, *late]:
            self._drop(job)
            self._end(job)
        if taken:
            self._runner.admit(taken)
        return True

    def _leave_queue(self) -> list[Job[WorkT]]:
        """Mark the cancelled jobs and remove their work from the queue."""
        cancelled, self._cancelling = self._cancelling, []
        for job in cancelled:
            job.cancelled = True
        if cancelled:
            # Queued work counts against the limits: subtract it wherever it stands in the queue.
            for job, work in self._queue:
                if job.cancelled:
                    self._left_queue(job, work)
            self._queue.remove(lambda entry: entry[0].cancelled)
        return cancelled

    def _left_queue(self, job: Job[WorkT], work: WorkT) -> None:
        """Subtract work that has left the queue."""
        job.queued_work -= 1
        requests = 0 if job.queued_work else 1
        self._admission.leave(job.client, Held(requests, work.rows, work.queued_tokens))

    def _take_from_queue(self) -> list[WorkT]:
        """Take the work that there is room for now."""
        taken: list[WorkT] = []
        used_rows = self._runner.used_rows
        now = time.monotonic()
        while self._queue:
            job, work = self._queue.first()
            late = job.deadline is not None and job.deadline <= now
            # Work wider than max_rows is admitted when nothing else runs.
            fits = used_rows + work.rows <= self._max_rows or not used_rows
            if job.error is None and not fits and not late:
                break
            self._queue.pop()
            self._left_queue(job, work)
            if job.error is None and late:
                job.error = DeadlineExceeded("the deadline of the request passed in the queue")
                self._late.append(job)
            if job.error is not None:
                continue
            if job.admitted_at is None:
                job.admitted_at = now
                self._metrics.admitted(now - job.submitted_at)
            used_rows += work.rows
            self._running_tokens += work.queued_tokens
            # Before anything can raise: `_fail_everything` fails the jobs of active work.
            self._active[id(work)] = (job, work)
            taken.append(work)
        return taken

    def _end_work(self, work: WorkT, error: ServiceError | None) -> None:
        """Account for work that has left the runner; an error fails the whole job."""
        known = self._active.pop(id(work), None)
        if known is None:
            # Another part of its job failed in this step, so it was dropped already.
            return
        job, _ = known
        self._running_tokens -= work.queued_tokens
        job.open_work -= 1
        if error is None and work.first_token_at is not None:
            first = work.first_token_at
            spent_s = time.monotonic() - first
            self._metrics.wrote(first - job.submitted_at, spent_s, work.written_tokens)
        if error is not None:
            job.error = job.error or error
            self._drop(job)
        if job.open_work == 0 or job.error is not None:
            self._end(job)

    def _end(self, job: Job[WorkT]) -> None:
        if not job.delivered:
            job.delivered = True
            job.ended_at = time.monotonic()
            self._ended.append(job)

    def _drop(self, job: Job[WorkT]) -> None:
        """Remove all active work of a job."""
        dropped = [work for owner, work in self._active.values() if owner is job]
        if dropped:
            # First: if this raises, the work is still active and its job fails.
            self._runner.drop(dropped)
        for work in dropped:
            self._running_tokens -= work.queued_tokens
            del self._active[id(work)]

    def _hand_back(self) -> None:
        if self._ended:
            # Cleared only after delivery: if it raises, the dying worker delivers them again.
            self._deliver(self._ended)
            self._ended = []

    def _fail_everything(self) -> None:
        with self._wake:
            self._dead = True
            waiting = [job for job, _ in self._queue]
            self._queue.clear()
            self._cancelling.clear()
            self._admission.clear()
            self._step_began = None
        for job in [*waiting, *(job for job, _ in self._active.values())]:
            job.error = job.error or engine_stopped()
            self._end(job)
        self._active.clear()
        self._running_tokens = 0
        self._runner.clear()
        self._hand_back()


def _size_of(works: Sequence[Work]) -> Held:
    rows, tokens = sum(x.rows for x in works), sum(x.queued_tokens for x in works)
    return Held(1, rows, tokens)
