"""One bounded queue and one worker thread: admit work, run it step by step, hand back.

The queue is bounded by requests, rows and tokens, is fair between clients, and drops what has come
too late unrun.

What a step is lies with a runner, one for each kind of model. Requests of different clients share
every model run, and rows join and leave between any two of them. A recurrent state has a fixed
size, so this is all that continuous batching takes: cellular batching (Gao et al., BatchMaker,
EuroSys 2018).
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from service.errors import DeadlineExceeded, EngineStopped, ModelFailure, QueueFull, ServiceError
from service.observe.metrics import EngineGauges, EngineMetrics
from service.scheduling.admission import RETRY_AFTER_S, Admission, Held, QueueBounds
from service.scheduling.fair_queue import FairQueue

logger = logging.getLogger(__name__)


class Work(Protocol):
    """One input of a request."""

    @property
    def rows(self) -> int:
        """Rows that it holds at most at one time."""

    @property
    def queued_tokens(self) -> int:
        """What it adds to the queue's bound on tokens."""

    @property
    def first_token_at(self) -> float | None:
        """When it had its first token (time.monotonic); None where it writes none."""

    @property
    def written_tokens(self) -> int:
        """Tokens that it has, those of all its rows one after another."""


WorkT = TypeVar("WorkT", bound=Work)


class Runner(Protocol[WorkT]):
    """What steps together in one worker: admitted work in, ended work out."""

    @property
    def used_rows(self) -> int:
        """Rows that the admitted work holds now."""

    @property
    def free(self) -> bool:
        """Whether it holds no work and no row, counted apart from `used_rows`."""

    def admit(self, work: Sequence[WorkT]) -> None:
        """Let work join before the next step."""

    def run(self) -> list[tuple[WorkT, ServiceError | None]]:
        """One step. The work that ended has left: done, or with the error it ended by.

        A model run that raises fails the work in it; what this raises ends the worker.
        """

    def drop(self, work: Sequence[WorkT]) -> None:
        """Let admitted work leave unfinished; what ended in this step has left already."""

    def clear(self) -> None:
        """Forget everything: the worker has ended."""


@dataclass(slots=True, eq=False)
class Job(Generic[WorkT]):
    """One request's work; the runner fills in its rows, the scheduler `error` and the times."""

    work: Sequence[WorkT]
    client: str = ""  # whose share of the queue it takes
    deadline: float | None = None  # time.monotonic(); what waits longer is not run
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

    `deliver` gets the jobs that ended in one iteration, all at once, in the worker's thread.
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
        self._late: list[Job[WorkT]] = []  # whose time was over in the queue
        self._running_tokens = 0  # of the active work, as the queue counts them
        self._step_began: float | None = None
        self._watched_step: float | None = None  # that ran when `look` was called last
        self._stalled_s = 0.0  # for which it has been seen to run
        self._counted_to = time.monotonic()  # up to here the rate knows of the time at work
        self.last_step = time.monotonic()
        self._thread = threading.Thread(target=self._work, name=f"engine-{name}", daemon=True)

    def start(self) -> None:
        """Start the worker."""
        self._thread.start()

    def stop(self, timeout_s: float | None = None) -> None:
        """End the worker; what is queued or running fails with EngineStopped.

        One that hangs in a step is left after so long.
        """
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(timeout_s)

    @property
    def alive(self) -> bool:
        """Whether the worker takes work."""
        return self._thread.is_alive() and not self._stopping and not self._dead

    @property
    def died(self) -> bool:
        """Whether the worker has ended, and nobody asked it to."""
        return self._dead and not self._stopping

    def look(self, ran_s: float) -> None:
        """Count this time towards the step that runs, if it ran at the last look, too.

        For whoever looks again and again; `ran_s`: for how long the process ran since then. The
        clock alone does not tell: it goes on while a process is stopped or a container is frozen.
        """
        began = self._step_began
        is_same = began is not None and began == self._watched_step
        self._stalled_s = self._stalled_s + ran_s if is_same else 0.0
        self._watched_step = began

    def stalled_s(self) -> float:
        """For how long the step has been seen to run that runs now; 0 between steps."""
        began = self._step_began
        return self._stalled_s if began is not None and began == self._watched_step else 0.0

    @property
    def load(self) -> int:
        """Rows that are queued or held: what new work would wait for."""
        with self._wake:
            return self._admission.waiting.rows + self._runner.used_rows

    def gauges(self) -> EngineGauges:
        """Where it stands."""
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
        """Whether no row is queued or held: what must hold whenever nobody waits."""
        return self._runner.free and not (self._queue or self._active)

    def submit(self, job: Job[WorkT]) -> None:
        """Queue a job, whole or not at all. Raises QueueFull and EngineStopped."""
        asked = _size_of(job.work)
        with self._wake:
            if self._stopping or self._dead or not self._thread.is_alive():
                raise _stopped()
            self._admission.check(job.client, asked, self._running_tokens)
            job.open_work = job.queued_work = len(job.work)
            job.submitted_at = time.monotonic()
            for work in job.work:
                self._queue.push(job.client, max(1, work.queued_tokens), (job, work))
            self._admission.join(job.client, asked)
            self._wake.notify()

    def refusal(self, client: str) -> QueueFull | None:
        """What the smallest job of a client would be refused with; None where there is room."""
        with self._wake:
            try:
                self._admission.check(client, Held(1, 1, 1), self._running_tokens)
            except QueueFull as full:
                return full
        return None

    def cancel(self, job: Job[WorkT]) -> None:
        """Let a job's rows leave before the next step. A job that has ended is left alone."""
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
            # Not to go on: a bug here ends the worker, and everyone who waits is told.
            logger.exception("engine %s: the worker died", self._name)
        finally:
            self._fail_everything()

    def _step(self) -> None:
        """One step of the runner; what ended is counted."""
        rows, began = self._runner.used_rows, time.monotonic()
        self._step_began = began
        done = 0
        for work, error in self._runner.run():
            done += work.queued_tokens
            self._end_work(work, error)
        self._step_began, self.last_step = None, time.monotonic()
        # With what came between the steps: that, too, is time in which others wait.
        self._admission.rate.add(done, self.last_step - self._counted_to)
        self._counted_to = self.last_step
        if rows:
            self._metrics.stepped(self.last_step - began, rows)

    def _admit(self) -> bool:
        """Wait for work, drop cancelled rows, take rows from the queue; false to end."""
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
        """Mark the cancelled jobs, and take what they queued out of the queue."""
        cancelled, self._cancelling = self._cancelling, []
        for job in cancelled:
            job.cancelled = True
        if cancelled:
            # Wherever they stood, they count against the bounds no longer.
            for job, work in self._queue:
                if job.cancelled:
                    self._left_queue(job, work)
            self._queue.remove(lambda entry: entry[0].cancelled)
        return cancelled

    def _left_queue(self, job: Job[WorkT], work: WorkT) -> None:
        """Count work no longer that waited."""
        job.queued_work -= 1
        requests = 0 if job.queued_work else 1
        self._admission.leave(job.client, Held(requests, work.rows, work.queued_tokens))

    def _take_from_queue(self) -> list[WorkT]:
        """The work that there is room for now."""
        taken: list[WorkT] = []
        used_rows = self._runner.used_rows
        now = time.monotonic()
        while self._queue:
            job, work = self._queue.first()
            late = job.deadline is not None and job.deadline <= now
            # Lone wide work is admitted even where it is wider than max_rows.
            fits = used_rows + work.rows <= self._max_rows or not used_rows
            if job.error is None and not fits and not late:
                break
            self._queue.pop()
            self._left_queue(job, work)
            if job.error is None and late:
                job.error = DeadlineExceeded("the time of the request was over before it was begun")
                self._late.append(job)
            if job.error is not None:
                continue
            if job.admitted_at is None:
                job.admitted_at = now
                self._metrics.admitted(now - job.submitted_at)
            used_rows += work.rows
            self._running_tokens += work.queued_tokens
            # Before anything can raise, so that its job is told.
            self._active[id(work)] = (job, work)
            taken.append(work)
        return taken

    def _end_work(self, work: WorkT, error: ServiceError | None) -> None:
        """Count work that has left the runner; an error fails the whole job."""
        known = self._active.pop(id(work), None)
        if known is None:
            # It ended in the step in which another part of its job failed, and was dropped.
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
        """Let all active work of a job leave."""
        dropped = [work for owner, work in self._active.values() if owner is job]
        if dropped:
            # First: the job is still told where this raises.
            self._runner.drop(dropped)
        for work in dropped:
            self._running_tokens -= work.queued_tokens
            del self._active[id(work)]

    def _hand_back(self) -> None:
        if self._ended:
            # Forgotten only when delivered: a worker that dies of this tells them again.
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
            job.error = job.error or _stopped()
            self._end(job)
        self._active.clear()
        self._running_tokens = 0
        self._runner.clear()
        self._hand_back()


def _stopped() -> EngineStopped:
    headers = {"Retry-After": str(RETRY_AFTER_S)}
    return EngineStopped("the engine of this model is not running", headers=headers)


def _size_of(works: Sequence[Work]) -> Held:
    rows, tokens = sum(x.rows for x in works), sum(x.queued_tokens for x in works)
    return Held(1, rows, tokens)


def run_failed() -> ModelFailure:
    """What the rows of a model run get that raised."""
    return ModelFailure("the model run failed; other requests go on")
