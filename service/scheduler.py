"""One bounded queue and one worker thread: admit work, run it step by step, hand back.

What a step is lies with a runner, one for each kind of model. Requests of different clients share
every model run, and rows join and leave between any two of them. A recurrent state has a fixed
size, so this is all that continuous batching takes: cellular batching (Gao et al., BatchMaker,
EuroSys 2018).
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from service.errors import EngineStopped, ModelFailure, QueueFull, ServiceError

RETRY_AFTER_S = 1

logger = logging.getLogger(__name__)


class Work(Protocol):
    """One input of a request."""

    @property
    def rows(self) -> int:
        """Rows that it holds at most at one time."""

    @property
    def queued_tokens(self) -> int:
        """What it adds to the queue's bound on tokens."""


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
    """One request's work; the runner fills in its rows, the scheduler `error`."""

    work: Sequence[WorkT]
    error: ServiceError | None = None
    open_work: int = 0
    cancelled: bool = False
    delivered: bool = False


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
        max_queue_rows: int,
        max_queue_tokens: int,
    ) -> None:
        self._runner = runner
        self._deliver = deliver
        self._name = name
        self._max_rows = max_rows
        self._max_queue_rows = max_queue_rows
        self._max_queue_tokens = max_queue_tokens
        self._wake = threading.Condition()
        # Guarded by _wake:
        self._queue: deque[tuple[Job[WorkT], WorkT]] = deque()
        self._queued_rows = 0
        self._queued_tokens = 0
        self._cancelling: list[Job[WorkT]] = []
        self._stopping = False
        self._dead = False
        # The worker's own:
        self._active: dict[int, tuple[Job[WorkT], WorkT]] = {}  # by id of the work
        self._ended: list[Job[WorkT]] = []
        self.last_step = time.monotonic()
        self._thread = threading.Thread(target=self._work, name=f"engine-{name}", daemon=True)

    def start(self) -> None:
        """Start the worker."""
        self._thread.start()

    def stop(self) -> None:
        """End the worker; what is queued or running fails with EngineStopped."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the worker takes work."""
        return self._thread.is_alive() and not self._stopping and not self._dead

    @property
    def load(self) -> int:
        """Rows that are queued or held: what new work would wait for."""
        return self._queued_rows + self._runner.used_rows

    @property
    def free(self) -> bool:
        """Whether no row is queued or held: what must hold whenever nobody waits."""
        return self._runner.free and not (self._queue or self._active)

    def submit(self, job: Job[WorkT]) -> None:
        """Queue a job, whole or not at all. Raises QueueFull and EngineStopped."""
        rows = sum(work.rows for work in job.work)
        tokens = sum(work.queued_tokens for work in job.work)
        with self._wake:
            if self._stopping or self._dead or not self._thread.is_alive():
                raise _stopped()
            # A job over the bound by itself is let into an empty queue: a limit on one request is
            # the engine's to set, and it says so with 422.
            full = (
                self._queued_rows + rows > self._max_queue_rows
                or self._queued_tokens + tokens > self._max_queue_tokens
            )
            if full and self._queue:
                raise QueueFull(
                    f"the queue of this model holds {self._queued_rows} rows and "
                    f"{self._queued_tokens} tokens; at most {self._max_queue_rows} rows and "
                    f"{self._max_queue_tokens} tokens may wait",
                    headers={"Retry-After": str(RETRY_AFTER_S)},
                )
            job.open_work = len(job.work)
            self._queue.extend((job, work) for work in job.work)
            self._queued_rows += rows
            self._queued_tokens += tokens
            self._wake.notify()

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
                for work, error in self._runner.run():
                    self._end_work(work, error)
                self.last_step = time.monotonic()
                self._hand_back()
        except BaseException:
            # Not to go on: a bug here ends the worker, and everyone who waits is told.
            logger.exception("engine %s: the worker died", self._name)
        finally:
            self._fail_everything()

    def _admit(self) -> bool:
        """Wait for work, drop cancelled rows, take rows from the queue; false to end."""
        with self._wake:
            while not (self._queue or self._active or self._cancelling or self._stopping):
                self._wake.wait()
            if self._stopping:
                return False
            cancelled = self._leave_queue()
            taken = self._take_from_queue()
        for job in cancelled:
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
            self._queue = deque(x for x in self._queue if not x[0].cancelled)
            self._queued_rows = sum(work.rows for _, work in self._queue)
            self._queued_tokens = sum(work.queued_tokens for _, work in self._queue)
        return cancelled

    def _take_from_queue(self) -> list[WorkT]:
        """The work that there is room for now."""
        taken: list[WorkT] = []
        used_rows = self._runner.used_rows
        while self._queue:
            job, work = self._queue[0]
            # Lone wide work is admitted even where it is wider than max_rows.
            fits = used_rows + work.rows <= self._max_rows or not used_rows
            if job.error is None and not fits:
                break
            self._queue.popleft()
            self._queued_rows -= work.rows
            self._queued_tokens -= work.queued_tokens
            if job.error is not None:
                continue
            used_rows += work.rows
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
        job.open_work -= 1
        if error is not None:
            job.error = job.error or error
            self._drop(job)
        if job.open_work == 0 or job.error is not None:
            self._end(job)

    def _end(self, job: Job[WorkT]) -> None:
        if not job.delivered:
            job.delivered = True
            self._ended.append(job)

    def _drop(self, job: Job[WorkT]) -> None:
        """Let all active work of a job leave."""
        dropped = [work for owner, work in self._active.values() if owner is job]
        if dropped:
            # First: the job is still told where this raises.
            self._runner.drop(dropped)
        for work in dropped:
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
            self._queued_rows = self._queued_tokens = 0
        for job in [*waiting, *(job for job, _ in self._active.values())]:
            job.error = job.error or _stopped()
            self._end(job)
        self._active.clear()
        self._runner.clear()
        self._hand_back()


def _stopped() -> EngineStopped:
    headers = {"Retry-After": str(RETRY_AFTER_S)}
    return EngineStopped("the engine of this model is not running", headers=headers)


def run_failed() -> ModelFailure:
    """What the rows of a model run get that raised."""
    return ModelFailure("the model run failed; other requests go on")
