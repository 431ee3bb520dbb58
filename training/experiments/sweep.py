"""Trains the runs of a grid, several at once, each as a process of `python -m training train`."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

from training.config import ConfigError
from training.config_changes import as_word
from training.experiments.grid import Grid, Point
from training.experiments.kinds import experiment_of
from training.experiments.outcome_table import best_of, table, write_tables
from training.experiments.outcomes import (
    LOG_FILE,
    State,
    corpus_of,
    forget_outcome,
    is_finished,
    keep_outcome,
    locked,
    rows_of,
)
from training.experiments.run import Say, holds_run
from training.loop.checkpoint import BEST, LAST
from training.loop.cpus import usable_cpus
from training.loop.trainer import Stopped

# The command line that trains a point, from its last checkpoint if the second argument is true.
Command = Callable[[Point, bool], Sequence[str]]

_LOOK_S = 0.1  # between looks at the children
_REPORT_S = 10.0  # between reports of progress
_LOCK_TRIES = 3  # a look at the table holds a lock for an instant
_TAIL_BYTES = 4096
# Exit statuses of a `train` that was stopped, with or without time to write a checkpoint.
_STOPPED = {n for x in (signal.SIGTERM, signal.SIGINT) for n in (128 + x, -x)}
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(slots=True)
class _Child:
    """A process that trains a point, with the lock and the log that are held for it."""

    point: Point
    process: subprocess.Popen[bytes]
    held: ExitStack  # the lock and the log
    log_start: int  # bytes in the log from earlier attempts
    started: float = field(default_factory=time.monotonic)
    reported: str = ""
    signals: int = 0  # that it was sent


def check_files(grid: Grid, points: Sequence[Point]) -> None:
    """Read the files of the runs. Raises ConfigError if a run that has not started cannot use its.

    Otherwise each run would report the same misspelt name. Also raises it if a run has started with
    other files: its figures cannot be compared with those of the others.
    """
    base = grid.config_path.resolve().parent
    digests: dict[str, str | None] = {}
    for point in points:
        data = point.config.data.model_dump_json()
        begun = holds_run(point.run_dir)
        if digests.get(data) is None and not (begun and data in digests):
            try:
                digests[data] = experiment_of(point.config).input_digest(base)
            except ConfigError:
                if not begun:
                    raise
                digests[data] = None  # they are gone: the run has its own copy
        own = corpus_of(point)
        if None not in (own, digests[data]) and own != digests[data]:
            raise ConfigError(
                f"{point.run_dir}: the text has changed since the run began; put it back, or train "
                "the grid in another folder (--runs)"
            )


def train_command(grid: Grid, jobs: int) -> Command:
    """The command that trains a point, with its share of the processors."""
    share = max(1, usable_cpus() // jobs)

    def command(point: Point, resume: bool) -> Sequence[str]:
        changes = dict(point.changes)
        # A single run takes all processors, as it would without a grid.
        options = getattr(point.config, "training", None)
        if jobs > 1 and options is not None and options.threads is None:
            changes["training.threads"] = share
        words = [sys.executable, "-m", "training", "train", str(grid.config_path)]
        words += ["--run", str(point.run_dir)]
        for key, value in changes.items():
            words += ["--set", as_word(key, value)]
        return [*words, "--resume"] if resume else words

    return command


def sweep(grid: Grid, points: Sequence[Point], *, jobs: int, command: Command, say: Say) -> bool:
    """Train the points that are not finished, and print the table. Returns whether all are now.

    A run that fails does not end the others. After a signal, raises Stopped once every child has
    written its checkpoint and ended.
    """
    left = [point for point in points if not is_finished(point)]
    grid.folder.mkdir(parents=True, exist_ok=True)
    check_files(grid, points)
    done = len(points) - len(left)
    say(f"{grid.folder}: {len(points)} runs, {done} of them finished, {jobs} at once")
    _Sweep(grid, len(points), done, command, say).train(left, jobs)
    write_tables(grid)
    report(grid, say)
    return all(is_finished(point) for point in points)


def report(grid: Grid, say: Say) -> None:
    """Print the table, and the command that exports the best run."""
    rows = rows_of(grid)
    say(table(grid, rows))
    best = best_of(rows, "python -m training export")
    if best is not None:
        say(best)


class _Sweep:
    """Child processes that train side by side."""

    def __init__(self, grid: Grid, total: int, done: int, command: Command, say: Say) -> None:
        self._grid = grid
        self._total = total
        self._done = done
        self._command = command
        self._say = say
        self._children: list[_Child] = []
        self._signals: list[int] = []
        self._next_report = time.monotonic() + _REPORT_S

    def train(self, points: Sequence[Point], jobs: int) -> None:
        """Train all points, `jobs` at once. Raises Stopped."""
        waiting = deque(points)
        with self._stop_signals():
            try:
                while self._children or (waiting and not self._signals):
                    while waiting and len(self._children) < jobs and not self._signals:
                        self._start(waiting.popleft())
                    time.sleep(_LOOK_S)
                    self._look()
            finally:
                for child in self._children:  # none, unless the loop has failed
                    child.process.terminate()
        if self._signals:
            write_tables(self._grid)
            raise Stopped(self._signals[0])

    # --- children -------------------------------------------------------------------------------

    def _start(self, point: Point) -> None:
        with ExitStack() as held:
            lock = _try_lock(point, held)
            if lock is None:
                self._say(f"run {point.index}, {point.label}: another process is training it")
                return
            if is_finished(point):  # another process has trained it meanwhile
                self._done += 1
                return
            forget_outcome(point)
            if not (point.run_dir / LAST).exists():
                # Killed before its first checkpoint: these weights cannot be continued.
                (point.run_dir / BEST).unlink(missing_ok=True)
            resume = holds_run(point.run_dir)
            words = self._command(point, resume)
            log = held.enter_context((point.run_dir / LOG_FILE).open("ab"))
            log_start = log.tell()
            process = _spawn(words, log, lock)
            self._children.append(_Child(point, process, held.pop_all(), log_start))
        verb = "continues" if resume else "starts"
        self._say(f"run {point.index}, {point.label}: {verb}; its log is {_log_of(point)}")

    def _look(self) -> None:
        for child in list(self._children):
            if child.process.poll() is not None:
                self._children.remove(child)
                with child.held:
                    self._ended(child)
                write_tables(self._grid)
            elif child.signals < len(self._signals):
                # The first signal lets it write its checkpoint.
                child.process.send_signal(signal.SIGKILL if child.signals else signal.SIGTERM)
                child.signals += 1
        if time.monotonic() >= self._next_report:
            self._next_report = time.monotonic() + _REPORT_S
            for child in self._children:
                line = _last_line(child)
                if line and line != child.reported:
                    self._say(f"run {child.point.index}, {child.point.label}: {line}")
                    child.reported = line

    def _ended(self, child: _Child) -> None:
        point, status = child.point, child.process.returncode
        seconds = time.monotonic() - child.started
        name = f"run {point.index}, {point.label}"
        if status == 0:
            keep_outcome(point, State.FINISHED, seconds, None)
            self._done += 1
            self._say(f"{name}: finished in {seconds:.0f} s; {self._done} of {self._total} done")
        elif self._signals or status in _STOPPED:
            self._say(f"{name}: stopped")
        else:
            cause = _cause(child)
            keep_outcome(point, State.FAILED, seconds, cause)
            self._say(f"{name}: failed: {cause}")

    @contextmanager
    def _stop_signals(self) -> Iterator[None]:
        """Note signals, which `_look` passes on."""

        def note(number: int, _: FrameType | None) -> None:
            self._signals.append(number)

        # Ignored signals stay ignored, such as SIGHUP under nohup.
        handled = [x for x in _STOP_SIGNALS if signal.getsignal(x) != signal.SIG_IGN]
        before = {number: signal.signal(number, note) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _try_lock(point: Point, held: ExitStack) -> int | None:
    for attempt in range(_LOCK_TRIES):
        if attempt:
            time.sleep(_LOOK_S)
        with ExitStack() as stack:
            lock = stack.enter_context(locked(point.run_dir))
            if lock is not None:
                held.push(stack.pop_all())
                return lock
    return None


def _spawn(words: Sequence[str], log: IO[bytes], lock: int) -> subprocess.Popen[bytes]:
    log.write(f"$ {shlex.join(words)}\n".encode())
    log.flush()
    return subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on
        pass_fds=[lock],
        env=dict(os.environ),
    )


def _log_of(point: Point) -> Path:
    return point.run_dir / LOG_FILE


def _lines(child: _Child) -> list[str]:
    """The last lines that a child has written in this attempt."""
    with _log_of(child.point).open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(child.log_start, size - _TAIL_BYTES))
        text = stream.read().decode("utf-8", "replace")
    return [line.strip() for line in text.splitlines()[1:] if line.strip()]


def _last_line(child: _Child) -> str:
    return (_lines(child) or [""])[-1]


def _cause(child: _Child) -> str:
    """Why a child failed: its error, or the last line of its log."""
    status, lines = child.process.returncode, _lines(child)
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    errors = [line for line in lines if line.startswith("error: ")]
    found = [line.removeprefix("error: ") for line in errors] or lines
    return found[-1] if found else f"ended with status {status}"
