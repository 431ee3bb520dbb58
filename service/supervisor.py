"""Supervise several server processes on one port: restart those that end, leave the others alone.

uvicorn's own supervisor ends the whole service when one worker cannot start. When a models folder
broke while the server ran, that ended a service whose other workers were healthy.
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

# Pauses between the starts of a worker that never gets to serve; they double each time.
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0
_LOOK_S = 0.1  # between looks for a worker's answer

logger = logging.getLogger(__name__)


class Supervisor(Multiprocess):
    """Runs the workers. After `run`, `failed` says whether no worker could start."""

    def __init__(self, config: Config, sockets: list[socket]) -> None:
        super().__init__(config, sockets)
        self.failed = False
        self._pause_s: dict[Process, float] = {}  # the pause before its successor starts
        self._due: dict[Process, float] = {}  # for ended workers: when the successor starts

    def keep_subprocess_alive(self) -> None:
        """Check every worker once; start a successor for each that has ended."""
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
        """Whether a worker answers in time; does not wait for one that has ended."""
        # Counts looks instead of reading the clock: this process may itself be stopped for a while.
        looks = int(self.config.timeout_worker_healthcheck / _LOOK_S)
        try:
            process.parent_conn.send(b"ping")
            while process.process.is_alive() and looks:
                if self.signal_queue:
                    return True  # a signal is more urgent
                if process.parent_conn.poll(_LOOK_S):
                    if process.parent_conn.recv():  # whether it serves yet
                        self._pause_s[process] = 0.0
                    return True
                looks -= 1
        except (OSError, EOFError):
            return False
        return False

    def _bury(self, process: Process) -> None:
        """End a worker that hangs or has ended, and schedule its successor."""
        process.kill()
        process.join()
        if self.should_exit.is_set():
            return
        others = [x for x in self.processes if x is not process and x not in self._due]
        if process.exitcode == STARTUP_FAILURE and not others:
            logger.error("no worker could start; shutting down")
            self.failed = True
            self.should_exit.set()
            return
        pause_s = self._pause_s.setdefault(process, 0.0)
        logger.error(
            "worker %s ended (%s); a new one starts %s",
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
    """Without room for shared metrics, let new workers keep metrics of their own.

    Writing to a mapped file on a full disk would kill the process (SIGBUS).
    """
    lack = lacks_room(Path(os.environ[SHARED_FOLDER])) if SHARED_FOLDER in os.environ else None
    if lack is not None:
        del os.environ[SHARED_FOLDER]
        logger.error("%s; workers that start from now on report their own metrics", lack)


def _how(status: int | None) -> str:
    if status is None or status >= 0:
        return f"status {status}"
    return signal.Signals(-status).name
