"""Several server processes on one port: those that end are started again, the others go on.

uvicorn's supervisor ends everything, and well, where a single worker cannot start: beside a folder
that was broken while the server ran, that ended a service whose other workers were healthy.
"""

import logging
import os
import signal
import time
from pathlib import Path
from socket import socket

from uvicorn.config import STARTUP_FAILURE, Config
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

from service.observe.metrics import SHARED_FOLDER, lacks_room

# Between the starts of a worker that does not come to serve: doubled each time.
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0
_LOOK_S = 0.1  # at the answer of a worker

logger = logging.getLogger(__name__)


class Supervisor(Multiprocess):
    """`run` it; `failed` says then whether no worker could be started, and so all had to end."""

    def __init__(self, config: Config, sockets: list[socket]) -> None:
        super().__init__(config, sockets)
        self.failed = False
        self._pause_s: dict[Process, float] = {}  # after the one that this was started for
        self._due: dict[Process, float] = {}  # of those that ended: when another is started

    def keep_subprocess_alive(self) -> None:
        """Look after every worker once."""
        for i, process in enumerate(self.processes):
            if self.should_exit.is_set():
                return
            due = self._due.get(process)
            if due is None:
                if not self._lives(process):
                    self._bury(process)
            elif time.monotonic() >= due:
                self.processes[i] = self._successor(process)

    def _lives(self, process: Process) -> bool:
        """Whether a worker answers, within its time; one that has ended is not waited for."""
        # Looks are counted and not the clock: this process may be stopped itself meanwhile.
        looks = int(self.config.timeout_worker_healthcheck / _LOOK_S)
        try:
            process.parent_conn.send(b"ping")
            while process.process.is_alive() and looks:
                if self.signal_queue:
                    return True  # first things first
                if process.parent_conn.poll(_LOOK_S):
                    if process.parent_conn.recv():  # whether it serves by now
                        self._pause_s[process] = 0.0
                    return True
                looks -= 1
        except (OSError, EOFError):
            return False
        return False

    def _bury(self, process: Process) -> None:
        """A worker that has ended, or hangs: end it, and say when another is started."""
        process.kill()
        process.join()
        if self.should_exit.is_set():
            return
        others = [x for x in self.processes if x is not process and x not in self._due]
        if process.exitcode == STARTUP_FAILURE and not others:
            logger.error("no worker could be started: the service ends")
            self.failed = True
            self.should_exit.set()
            return
        pause_s = self._pause_s.setdefault(process, 0.0)
        logger.error(
            "worker %s ended (%s); another is started %s",
            process.pid,
            _how(process.exitcode),
            f"in {pause_s:g} s" if pause_s else "now",
        )
        self._due[process] = time.monotonic() + pause_s

    def _successor(self, process: Process) -> Process:
        _check_shared_folder()
        pause_s = self._pause_s.pop(process, 0.0)
        self._due.pop(process, None)
        successor = Process(self.config, self.sockets)
        self._pause_s[successor] = min(_LONGEST_PAUSE_S, max(_FIRST_PAUSE_S, 2 * pause_s))
        successor.start()
        return successor


def _check_shared_folder() -> None:
    """Let a worker have numbers of its own where there is no room for shared ones.

    A file that is mapped into memory, and has no room on its disk, ends the process (SIGBUS).
    """
    lack = lacks_room(Path(os.environ[SHARED_FOLDER])) if SHARED_FOLDER in os.environ else None
    if lack is not None:
        del os.environ[SHARED_FOLDER]
        logger.error("%s; workers that start from now on tell their own numbers", lack)


def _how(status: int | None) -> str:
    if status is None or status >= 0:
        return f"status {status}"
    return signal.Signals(-status).name
