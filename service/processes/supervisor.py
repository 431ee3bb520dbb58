"""Several server processes on one port: start them, replace those that end, end them together.

The supervisor has opened the models; each process is a fork of it. So the models are in memory
once, a process starts in a moment, and a successor serves exactly what the others serve, whatever
became of the folder meanwhile. For this the supervisor stays a process of one thread, and takes
part in every change of the models (`agreement`).
"""

import gc
import logging
import multiprocessing
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from multiprocessing.process import BaseProcess
from types import FrameType

from uvicorn.config import STARTUP_FAILURE

from service.processes.acceptor import ConnectionCounts
from service.processes.agreement import Agreement
from service.processes.messages import Message
from service.settings import Settings
from service.tasks.registry import ModelRegistry

# Pauses between the starts of a process that never gets to serve; they double each time.
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0
# How long a process may take to answer; on a busy machine, even a start takes seconds.
_ANSWER_S = 20
_TICK_S = 1.0
# How long a process may take to end after its grace time: uvicorn's waits, the last log lines.
_LAST_S = 10.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)

logger = logging.getLogger(__name__)

# The work of a process: serve in a place, connected to the supervisor; ends the process.
Work = Callable[[int, Connection], None]


@dataclass(eq=False, slots=True)
class _Worker:
    """A server process."""

    place: int
    process: BaseProcess
    connection: Connection
    pause_s: float  # before its successor starts
    serves: bool = False
    silence: int = 0  # ticks since it was last heard of

    @property
    def pid(self) -> int | None:
        return self.process.pid

    def send(self, message: Message) -> None:
        with suppress(OSError):  # it has ended, which the sentinel shows
            self.connection.send(message)

    def kill(self) -> None:
        self.process.kill()


class Supervisor:
    """Runs the server processes, one in each place, until a signal."""

    def __init__(
        self,
        settings: Settings,
        registry: ModelRegistry,
        counts: ConnectionCounts,
        work: Work,
        *,
        on_serving: Callable[[], None],
    ) -> None:
        """`on_serving` is called once, when every process serves for the first time."""
        self._settings = settings
        self._counts = counts
        self._count = settings.workers or 1
        self._work = work
        self._on_serving: Callable[[], None] | None = on_serving
        self._workers: dict[int, _Worker] = {}  # by place
        self._due: dict[int, tuple[float, float]] = {}  # by place: when, and the pause after that
        self._signals: list[int] = []
        self._woken, self._wake = socket.socketpair()
        self._leaving_until: float | None = None
        self._failed = False
        self._registry = registry
        self._agreement = Agreement(
            registry,
            lambda: list(self._workers.values()),
            prepare_s=_ANSWER_S + 3 * settings.open_timeout_s,
            carry_out_s=_ANSWER_S,
        )

    def run(self) -> int:
        """Run until all processes have ended; the exit status."""
        with self._handled_signals():
            for place in range(self._count):
                self._start(place, 0.0)
            tick = time.monotonic() + _TICK_S
            while self._workers or (self._due and self._leaving_until is None):
                self._handle(max(0.0, tick - time.monotonic()))
                self._obey()
                if time.monotonic() >= tick:
                    # From now, not from the last one: this process may have been stopped meanwhile.
                    tick = time.monotonic() + _TICK_S
                    self._tick()
        return 1 if self._failed else 0

    # --- what comes in --------------------------------------------------------------------------

    def _handle(self, timeout_s: float) -> None:
        """Wait for messages, ends of processes and signals."""
        by_connection = {worker.connection: worker for worker in self._workers.values()}
        by_sentinel = {worker.process.sentinel: worker for worker in self._workers.values()}
        ready = wait([self._woken, *by_connection, *by_sentinel], timeout_s)
        for each in ready:
            if isinstance(each, Connection):
                self._read(by_connection[each])
            elif isinstance(each, socket.socket):
                self._woken.recv(4096)
        for each in ready:
            if isinstance(each, int):
                self._bury(by_sentinel[each])

    def _read(self, worker: _Worker) -> None:
        try:
            message: Message = worker.connection.recv()
        except (EOFError, OSError):
            # It is ending: without its connection it must not go on.
            worker.kill()
            return
        worker.silence = 0
        match message.kind:
            case "serving":
                worker.serves, worker.pause_s = True, 0.0
                self._tell_when_serving()
            case "propose" if message.decision is not None:
                self._agreement.propose(worker, message.number, message.decision)
            case "done":
                self._agreement.answered(worker, message.number, message.error)
            case _:
                return
        self._start_due()

    def _tell_when_serving(self) -> None:
        everyone = len(self._workers) == self._count
        if self._on_serving and everyone and all(x.serves for x in self._workers.values()):
            self._on_serving()
            self._on_serving = None

    def _tick(self) -> None:
        """Once a second: look for processes that hang, and for successors that are due."""
        for worker in list(self._workers.values()):
            worker.silence += 1
            if worker.silence > _ANSWER_S:
                logger.error("worker %s does not answer", worker.pid)
                worker.kill()
            elif worker.silence == max(1, _ANSWER_S // 4):
                worker.send(Message(kind="ping"))
        self._agreement.tick()
        self._start_due()
        if self._leaving_until is not None and time.monotonic() > self._leaving_until:
            for worker in self._workers.values():
                worker.kill()

    # --- signals --------------------------------------------------------------------------------

    @contextmanager
    def _handled_signals(self) -> Iterator[None]:
        """Note signals while it runs; a second one hurries, and more change nothing."""

        def note(number: int, _: FrameType | None) -> None:
            self._signals.append(number)

        for end in (self._woken, self._wake):
            end.setblocking(False)
        before = {number: signal.signal(number, note) for number in _SIGNALS}
        wakeup = signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _obey(self) -> None:
        """Pass signals on to the processes, which get none from a terminal themselves."""
        while self._signals:
            number = self._signals.pop(0)
            is_first = self._leaving_until is None
            limit_s = _LAST_S
            if is_first:
                logger.info("%s: shutting down", signal.Signals(number).name)
                limit_s += self._settings.lame_duck_s + self._settings.grace_s
            self._leaving_until = time.monotonic() + limit_s
            for worker in self._workers.values():
                worker.send(Message(kind="leave" if is_first else "hurry", number=number))

    # --- processes ------------------------------------------------------------------------------

    def _start(self, place: int, pause_s: float) -> None:
        ours, theirs = Pipe()
        # What a fork inherits and must not keep: without them closed, it would not notice our end.
        others = [worker.connection for worker in self._workers.values()]

        def target() -> None:
            signal.set_wakeup_fd(-1)
            for connection in (ours, *others):
                connection.close()
            for end in (self._woken, self._wake):
                end.close()
            self._work(place, theirs)

        # Objects alive by now stay alive: a collection in a fork would copy the memory they are in.
        gc.collect()
        gc.freeze()
        # Asked for here, since not every system forks.
        fork = multiprocessing.get_context("fork")
        process = fork.Process(target=target, name=f"worker-{place}", daemon=True)
        process.start()
        theirs.close()
        self._workers[place] = _Worker(place, process, ours, pause_s)

    def _bury(self, worker: _Worker) -> None:
        """Take note of the end of a process, and schedule its successor."""
        worker.process.join()
        worker.connection.close()
        del self._workers[worker.place]
        self._counts.leave(worker.place)
        status = worker.process.exitcode
        if self._leaving_until is None:
            if status == STARTUP_FAILURE and not self._workers:
                logger.error("no worker could start; shutting down")
                self._failed, self._leaving_until = True, time.monotonic()
                return
            pause_s = 0.0 if worker.serves else worker.pause_s
            logger.error(
                "worker %s ended (%s); a new one starts %s",
                worker.pid,
                _how(status),
                f"in {pause_s:g} s" if pause_s else "now",
            )
            following_s = min(_LONGEST_PAUSE_S, max(_FIRST_PAUSE_S, 2 * pause_s))
            self._due[worker.place] = (time.monotonic() + pause_s, following_s)
        self._agreement.gone(worker)
        self._start_due()

    def _start_due(self) -> None:
        """Start the successors that are due, unless they would miss a part of a decision."""
        if self._agreement.is_open or self._leaving_until is not None:
            return
        for place, (due, pause_s) in list(self._due.items()):
            if time.monotonic() >= due:
                del self._due[place]
                self._start(place, pause_s)


def _how(status: int | None) -> str:
    if status is None or status >= 0:
        return f"status {status}"
    return signal.Signals(-status).name
