"""One bounded queue and one worker thread a model: admit, stack rows, step, hand back.

Requests of different clients share every model run, and rows join and leave between any two of
them. A recurrent state has a fixed size, so this is all that continuous batching takes: cellular
batching (Gao et al., BatchMaker, EuroSys 2018).
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from service.errors import EngineStopped, ModelFailure, QueueFull, ServiceError
from service.read_batch import ReadBatch
from service.rows import ReadRow, WriteRow
from service.session import Session
from service.write_batch import WriteBatch

# Tokens a row reads in one run: few while others write, so that a long prompt holds them up by a
# few steps only. The results do not depend on it.
READ_CHUNK = 64
READ_CHUNK_WHILE_WRITING = 8
# A prompt of at most this many tokens is read in steps that other rows take anyway.
MAX_STEPPED_PROMPT = 64
RETRY_AFTER_S = 1

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Work:
    """One input of a request: a text to read, then the choices to write after it."""

    read: ReadRow
    write: list[WriteRow] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Rows that it holds at most at one time."""
        return max(1, len(self.write))

    @property
    def steps_its_prompt(self) -> bool:
        """Whether its one choice can read the prompt in the steps of the rows that write."""
        read = self.read
        plain = read.wants_continuation and read.uncounted == len(read.tokens)
        waits = [row for row in self.write if row.finish_reason is None]
        return plain and len(waits) == len(self.write) == 1 and read.remaining <= MAX_STEPPED_PROMPT

    @property
    def queued_tokens(self) -> int:
        """What it adds to the queue's bound on tokens."""
        return len(self.read.tokens) + sum(row.max_tokens for row in self.write)


@dataclass(slots=True, eq=False)
class Job:
    """One request's work; the scheduler fills in the rows, or `error`."""

    work: Sequence[Work]
    error: ServiceError | None = None
    open_work: int = 0
    cancelled: bool = False
    delivered: bool = False


class Scheduler:
    """Runs jobs on a session. `submit` and `cancel` may be called from any thread.

    `deliver` gets the jobs that ended in one iteration, all at once, in the worker's thread.
    """

    def __init__(
        self,
        session: Session,
        deliver: Callable[[list[Job]], None],
        *,
        name: str,
        max_rows: int,
        max_queue_rows: int,
        max_queue_tokens: int,
    ) -> None:
        self._deliver = deliver
        self._name = name
        self._max_rows = max_rows
        self._max_queue_rows = max_queue_rows
        self._max_queue_tokens = max_queue_tokens
        self._wake = threading.Condition()
        # Guarded by _wake:
        self._queue: deque[tuple[Job, Work]] = deque()
        self._queued_rows = 0
        self._queued_tokens = 0
        self._cancelling: list[Job] = []
        self._stopping = False
        self._dead = False
        # The worker's own:
        self._reading = ReadBatch(session)
        self._writing = WriteBatch(session, max_rows)
        self._active: dict[int, tuple[Job, Work]] = {}  # by id of a row
        self._used_rows = 0
        self._ended: list[Job] = []
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
        return self._queued_rows + self._used_rows

    @property
    def free(self) -> bool:
        """Whether no row is queued or held: what must hold whenever nobody waits."""
        rows = [*self._reading.rows, *self._writing.rows]
        return not (self._queue or self._active or self._used_rows or rows)

    def submit(self, job: Job) -> None:
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

    def cancel(self, job: Job) -> None:
        """Let a job's rows leave before the next step. A job that has ended is left alone."""
        with self._wake:
            if not self._dead:
                self._cancelling.append(job)
                self._wake.notify()

    # --- the worker's thread --------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while self._admit():
                self._iterate()
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
        for row in taken:
            self._begin(row)
        return True

    def _begin(self, row: ReadRow) -> None:
        """Put an admitted row where it is read."""
        job, work = self._active[id(row)]
        if not row.remaining:
            # All of it was known before.
            self._end_read(row)
        elif self._writing.rows and work.steps_its_prompt:
            (write,) = work.write
            del self._active[id(row)]
            self._active[id(write)] = (job, work)
            self._writing.add_reading(write, row)
        else:
            self._reading.add(row)

    def _leave_queue(self) -> list[Job]:
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

    def _take_from_queue(self) -> list[ReadRow]:
        """The rows that there is room for now."""
        taken = []
        while self._queue:
            job, work = self._queue[0]
            # A lone wide job is admitted even where it is wider than max_rows.
            fits = self._used_rows + work.rows <= self._max_rows or not self._used_rows
            if job.error is None and not fits:
                break
            self._queue.popleft()
            self._queued_rows -= work.rows
            self._queued_tokens -= work.queued_tokens
            if job.error is not None:
                continue
            self._used_rows += work.rows
            # Before anything can raise, so that its job is told.
            self._active[id(work.read)] = (job, work)
            taken.append(work.read)
        return taken

    def _iterate(self) -> None:
        """One chunk for the rows that read, one step for the rows that write."""
        if self._reading.rows:
            self._read()
        if self._writing.rows:
            self._write()

    def _read(self) -> None:
        chunk = READ_CHUNK_WHILE_WRITING if self._writing.rows else READ_CHUNK
        try:
            done, failed = self._reading.run(chunk)
        except Exception:  # whatever the runtime raises fails these rows, and them alone
            logger.exception("engine %s: a model run raised", self._name)
            rows = list(self._reading.rows)
            done, failed = [], [(row, _run_failed()) for row in rows]
            self._reading.remove(rows)
        for row in done:
            self._end_read(row)
        for row, error in failed:
            self._fail(row, error)

    def _write(self) -> None:
        for row in self._writing.sample():
            self._end_write(row)
        if not self._writing.rows:
            return
        try:
            failed = self._writing.run()
        except Exception:  # the same
            logger.exception("engine %s: a model run raised", self._name)
            rows = list(self._writing.rows)
            failed = [(row, _run_failed()) for row in rows]
            self._writing.remove(rows)
        for row, error in failed:
            self._fail(row, error)

    def _end_read(self, row: ReadRow) -> None:
        job, work = self._active.pop(id(row))
        pending = [write for write in work.write if write.finish_reason is None]
        if not pending or row.continuation is None:
            self._used_rows -= work.rows
            self._end_work(job)
            return
        self._used_rows -= work.rows - len(pending)
        for write in pending:
            self._active[id(write)] = (job, work)
            self._writing.add(write, row.continuation)

    def _end_write(self, row: WriteRow) -> None:
        job, work = self._active.pop(id(row))
        self._used_rows -= 1
        # Not by finish_reason: several rows may end in one step, and the work ends once.
        if not any(id(write) in self._active for write in work.write):
            self._end_work(job)

    def _end_work(self, job: Job) -> None:
        job.open_work -= 1
        if job.open_work == 0:
            self._end(job)

    def _end(self, job: Job) -> None:
        if not job.delivered:
            job.delivered = True
            self._ended.append(job)

    def _fail(self, row: ReadRow | WriteRow, error: ServiceError) -> None:
        """Fail the whole job of a row that has left its batch."""
        job, work = self._active.pop(id(row))
        self._used_rows -= work.rows if row is work.read else 1
        job.error = job.error or error
        self._drop(job)
        self._end(job)

    def _drop(self, job: Job) -> None:
        """Let every active row of a job leave."""
        ids = {key for key, (owner, _) in self._active.items() if owner is job}
        reads = [row for row in self._reading.rows if id(row) in ids]
        writes = [row for row in self._writing.rows if id(row) in ids]
        for read in reads:
            self._used_rows -= self._active.pop(id(read))[1].rows
        for write in writes:
            del self._active[id(write)]
            self._used_rows -= 1
        if reads:
            self._reading.remove(reads)
        if writes:
            self._writing.remove(writes)
        if job.cancelled:
            self._end(job)

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
        self._used_rows = 0
        self._reading.rows.clear()
        self._writing.rows.clear()
        self._hand_back()


def _stopped() -> EngineStopped:
    headers = {"Retry-After": str(RETRY_AFTER_S)}
    return EngineStopped("the engine of this model is not running", headers=headers)


def _run_failed() -> ModelFailure:
    return ModelFailure("the model run failed; other requests go on")
