"""The outcomes of a grid's runs: how each ended, and its figures.

Several processes may train runs of one grid. Each run's folder has a lock, which the process that
trains it and its child hold together, so that it lasts as long as either.
"""

import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from training.config import ConfigError
from training.experiments.grid import Grid, Point, same_run
from training.loop import checkpoint
from training.loop.checkpoint import BEST, LAST, CheckpointError

OUTCOME_FILE = "outcome.json"
LOG_FILE = "train.log"
_LOCK_FILE = ".lock"


class State(StrEnum):
    """The state of a run."""

    FINISHED = "finished"
    FAILED = "failed"
    RUNNING = "running"  # in some process
    STOPPED = "stopped"  # it will continue from its checkpoint
    WAITING = "waiting"


@dataclass(frozen=True, slots=True)
class Row:
    """A run in the table. A figure is None until it is known."""

    index: int
    folder: str
    values: Mapping[str, Any]  # of the options that were set
    state: State
    measure: float | None = None  # of the best weights on the validation text
    best_step: int | None = None
    steps: int | None = None
    parameters: int | None = None  # of an n-gram: its n-grams
    seconds: float | None = None  # of training and evaluation
    cause: str | None = None  # why it failed
    rank: tuple[float, ...] = (math.inf,)  # the smallest is the best


@contextmanager
def locked(run_dir: Path) -> Iterator[int | None]:
    """Lock a run's folder; yields the lock's descriptor, or None if another process holds it."""
    run_dir.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(run_dir / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield descriptor if _lock(descriptor, fcntl.LOCK_EX) else None
    finally:
        os.close(descriptor)  # not unlocked: the child may outlive this process


def _lock(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_held(run_dir: Path) -> bool:
    try:
        descriptor = os.open(run_dir / _LOCK_FILE, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return not _lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def keep_outcome(point: Point, state: State, seconds: float, cause: str | None) -> None:
    """Record how a run ended."""
    document = {
        "state": state,
        "cause": cause,
        "seconds": round(seconds, 1),
        "config": point.config.model_dump(mode="json"),
    }
    write_whole(point.run_dir / OUTCOME_FILE, json.dumps(document, indent=2) + "\n")


def forget_outcome(point: Point) -> None:
    """Remove the record, before a run starts or continues."""
    (point.run_dir / OUTCOME_FILE).unlink(missing_ok=True)


def is_finished(point: Point) -> bool:
    """Whether a run of exactly this configuration has been trained to its end."""
    outcome = _outcome(point.run_dir)
    return outcome.get("state") == State.FINISHED and same_run(point.config, outcome["config"])


def corpus_of(point: Point) -> str | None:
    """The digest of the files that a run began with; None where no checkpoint has it."""
    path = point.run_dir / LAST
    record = _record(path if path.exists() else point.run_dir / BEST)
    digest: str | None = record.get("corpus_sha256")
    return digest


def rows_of(grid: Grid) -> list[Row]:
    """The runs as they are now, the best first."""
    rows = [_row(point, grid.select_by) for point in grid.points]
    return sorted(rows, key=lambda row: (row.state != State.FINISHED, row.rank, row.index))


def _row(point: Point, measure: str) -> Row:
    run_dir = point.run_dir
    outcome = _outcome(run_dir)
    best, last = _record(run_dir / BEST), _record(run_dir / LAST)
    if _is_held(run_dir):
        state = State.RUNNING
    elif is_finished(point):
        state = State.FINISHED
    elif outcome.get("state") == State.FAILED:
        state = State.FAILED
    else:
        state = State.STOPPED if last else State.WAITING
    value = best.get(measure)
    rank = last.get("best_rank") or [math.inf if value is None else value]
    return Row(
        index=point.index,
        folder=str(run_dir),
        values=point.changes,
        state=state,
        measure=value,
        best_step=best.get("step"),
        steps=last.get("step", best.get("step")),
        parameters=best.get("parameters"),
        seconds=last.get("seconds", outcome.get("seconds")),
        cause=outcome.get("cause") if state == State.FAILED else None,
        rank=tuple(rank),
    )


def _outcome(run_dir: Path) -> dict[str, Any]:
    path = run_dir / OUTCOME_FILE
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ConfigError(f"{path}: damaged; without it, the run goes on from its end") from error
    if not isinstance(document, dict) or not {"state", "config"} <= document.keys():
        raise ConfigError(f"{path}: damaged; without it, the run goes on from its end")
    return document


def _record(path: Path) -> dict[str, Any]:
    """A damaged checkpoint counts as none: its own run reports it, and the others go on."""
    try:
        return checkpoint.read_record(path)
    except CheckpointError:
        return {}


def write_whole(path: Path, text: str) -> None:
    """Write a file atomically; other processes may write the same one."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)
