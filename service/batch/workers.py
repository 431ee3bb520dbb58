"""Worker processes, forks of this one; results come back in order."""

import multiprocessing
import signal
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from service.batch.errors import BatchError

WorkT = TypeVar("WorkT")
ResultT = TypeVar("ResultT")

# Pieces of work queued for each worker, so that none is idle while the oldest result is awaited.
_AHEAD = 4


class Workers(Generic[WorkT, ResultT]):
    """Create it before this process starts a thread, since it forks.

    A thread for each worker hands it one piece of work at a time.
    """

    def __init__(self, work: Callable[[WorkT], ResultT], count: int) -> None:
        """`work` runs in the workers; it raises BatchError if the whole run cannot continue."""
        context = multiprocessing.get_context("fork")
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        self._workers: list[_Worker] = []
        for _ in range(count):
            ours, theirs = context.Pipe()
            others = [ours, *(worker.connection for worker in self._workers)]
            process = context.Process(target=_serve, args=(work, theirs, others), daemon=True)
            process.start()
            theirs.close()
            worker = _Worker(process, ours)
            self._workers.append(worker)
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(count)
        self._most = count * _AHEAD

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for worker in self._workers:
            # Workers hold nothing that could be lost.
            worker.process.kill()
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.process.join()
            worker.connection.close()

    @property
    def most_at_once(self) -> int:
        """How much work to submit before the first result is awaited."""
        return self._most

    def submit(self, work: WorkT) -> "Future[ResultT]":
        """A future, which raises BatchError if its worker dies or the run cannot continue."""
        return self._threads.submit(self._done, work)

    def _done(self, work: WorkT) -> ResultT:
        worker = self._idle.get()
        try:
            worker.connection.send(work)
            result = worker.connection.recv()
        except (EOFError, OSError) as error:
            worker.process.join(1)
            raise BatchError(
                f"a worker has died ({_ended(worker.process.exitcode)}); the same command "
                "continues where this run stopped"
            ) from error
        finally:
            self._idle.put(worker)
        if isinstance(result, BatchError):
            raise result
        answer: ResultT = result
        return answer


class _Worker:
    def __init__(self, process: Any, connection: Connection) -> None:
        self.process = process
        self.connection = connection


def _ended(code: int | None) -> str:
    if code == -signal.SIGKILL:
        return "killed; is there too little memory?"
    if code is not None and code < 0:
        return signal.strsignal(-code) or f"signal {-code}"
    return f"exit status {code}"


def _serve(
    work: Callable[[WorkT], ResultT], connection: Connection, others: list[Connection]
) -> None:
    """A worker, until the parent closes the connection or ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # A terminal also sends these to the workers; the parent ends them.
        signal.signal(number, signal.SIG_IGN)
    for other in others:
        other.close()
    while True:
        try:
            given = connection.recv()
        except EOFError:
            return
        try:
            result: Any = work(given)
        except BatchError as error:
            result = error
        try:
            connection.send(result)
        except BrokenPipeError:
            return
