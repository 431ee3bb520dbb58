"""A trial for bundles that arrive while the server runs: a separate process opens them first.

A graph may loop for ever or allocate without end. onnxruntime cannot be interrupted, but a process
can be ended. The server then opens the bundles that passed. `trial_process` is the other side.
"""

import os
import selectors
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO

from pydantic import BaseModel

from service.bundle.files import BundleError
from service.environment import PREFIX
from service.observe.metrics import SHARED_FOLDER
from service.settings import Settings

# Wall-clock limit as a multiple of the CPU limit: a busy machine is not the bundle's fault.
PATIENCE = 3.0
# Extra time for the process to start.
_START_S = 20.0
# An idle process waits for the next bundle: a start takes half a second, and bundles may be many.
_IDLE_S = 10.0
# As many threads as an engine's: the process has one.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class Task(BaseModel):
    """A bundle to open, and the settings: one line of JSON."""

    folder: Path
    settings: Settings
    threads: int


class Outcome(BaseModel):
    """The result: one line of JSON."""

    version: str | None = None  # SHA-256 of the manifest, which knows those of all other files
    error: str | None = None


class Trial:
    """One process, started when needed and ended when idle; it opens one bundle at a time."""

    def __init__(self, settings: Settings, threads: int) -> None:
        # The trial needs no key, so the secret stays in this process.
        self._settings = settings.model_copy(update={"state_key": None})
        self._threads = threads
        self._turn = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._rest: threading.Timer | None = None
        self._closed = False
        self.stays = False  # whether the process waits for the next bundle however long that takes

    def warm(self) -> None:
        """Start the process before the first bundle comes. Slow. Raises BundleError."""
        self.stays = True
        with self._turn:
            self._started("trial")

    def check(self, folder: Path) -> str:
        """Open a bundle in the process; return its version. Slow: call it in a thread.

        Raises BundleError if it cannot be served, or takes more than the settings allow.
        """
        task = Task(folder=folder.absolute(), settings=self._settings, threads=self._threads)
        with self._turn:
            if self._rest is not None:
                self._rest.cancel()
            try:
                outcome = self._outcome(task)
            finally:
                if not self.stays:
                    self._rest = threading.Timer(_IDLE_S, self._end_idle)
                    self._rest.daemon = True
                    self._rest.start()
        if outcome.version is None:
            raise BundleError(outcome.error or f"{folder.name}: it cannot be opened")
        return outcome.version

    def rest(self) -> None:
        """End the process until it is needed again."""
        with self._turn:
            self._end()
            if self._rest is not None:
                self._rest.cancel()
                self._rest.join()

    def close(self) -> None:
        """End the process for good; a check that waits for it fails."""
        self._closed = True
        process = self._process
        if process is not None:
            process.kill()
        with self._turn:
            self._end()
            if self._rest is not None:
                self._rest.cancel()

    def _outcome(self, task: Task) -> Outcome:
        name, limit_s = task.folder.name, self._settings.open_timeout_s
        process = self._started(name)
        to = process.stdin
        if to is None:
            raise RuntimeError("a process without pipes")
        try:
            to.write(task.model_dump_json().encode() + b"\n")
            to.flush()
        except BrokenPipeError:
            line: bytes | None = b""
        else:
            line = _line(process.stdout, _by_the_clock(limit_s))
        if line:
            return Outcome.model_validate_json(line)
        status = self._end()
        if self._closed:
            raise BundleError(f"{name}: the server is shutting down")
        raise BundleError(f"{name}: {_cause(line is None, status, limit_s)}")

    def _started(self, name: str) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        left_out = (PREFIX, SHARED_FOLDER)
        environment = {k: x for k, x in os.environ.items() if not k.startswith(left_out)}
        environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), **_ONE_THREAD}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "service.tasks.trial_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the server, which ends it
            )
        except OSError as error:
            cause = f"cannot start the process that opens it first: {error.strerror}"
            raise BundleError(f"{name}: {cause}") from error
        if self._closed:
            self._process.kill()
        limit_s = _by_the_clock(self._settings.open_timeout_s)
        # An empty line when it is ready for the first task. If it ends instead, its task finds out.
        if _line(self._process.stdout, limit_s) is None:
            self._end()
            cause = f"the process that opens it first did not start within {limit_s:g} s"
            raise BundleError(f"{name}: {cause}")
        return self._process

    def _end_idle(self) -> None:
        with self._turn:
            self._end()

    def _end(self) -> int | None:
        """End the process, if there is one; its status."""
        process, self._process = self._process, None
        if process is None:
            return None
        process.kill()
        status = process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # a task that it has not read
                    pipe.close()
        return status


def _line(stream: IO[bytes] | None, limit_s: float) -> bytes | None:
    """The next line: None where none comes in time, empty at the end."""
    if stream is None:
        raise RuntimeError("a process without pipes")
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        return stream.readline() if selector.select(limit_s) else None


def _by_the_clock(limit_s: float) -> float:
    return _START_S + PATIENCE * limit_s


def _cause(too_late: bool, status: int | None, limit_s: float) -> str:
    """Why there was no answer, in words."""
    limit = ""
    if too_late:
        limit = f"{_by_the_clock(limit_s):g} s of wall-clock time"
    elif status == -signal.SIGXCPU:
        limit = f"{limit_s:g} s of CPU time"
    if limit:
        return f"opening it and running its golden vectors takes more than {limit} (open_timeout_s)"
    how = f"status {status}" if status is None or status >= 0 else signal.Signals(-status).name
    return f"the process that tried to open it ended ({how})"
