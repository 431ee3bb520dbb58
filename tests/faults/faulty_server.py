"""`python -m service`, whose engine breaks in one way once a file is there.

`FAULT` says how, `FAULT_FILE` which file, and a row breaks that reads the token `FAULT_TOKEN` of a
language model or `FAULT_LABEL_TOKEN` of a labeler. Nothing of this is in the service.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import service.__main__
from service.runtime.labeler import OnnxLabelerSession
from service.runtime.language_model import OnnxLanguageModelSession
from service.scheduling.language_model import LanguageModelRunner

FAULT = os.environ["FAULT"]
FAULT_FILE = Path(os.environ["FAULT_FILE"])

_run = OnnxLanguageModelSession._run
_label = OnnxLabelerSession._run
_end_read = LanguageModelRunner._end_read
_time = time.time


def _armed() -> bool:
    return FAULT_FILE.exists()


def _faulty_run(self: Any, outputs: Any, tokens: Any, *rest: Any) -> Any:
    # Of the tiny bundles: the vocabulary stands in the session by ids alone.
    rows = (tokens == int(os.environ["FAULT_TOKEN"])).any(axis=1)
    if not _armed() or not rows.any():
        return _run(self, outputs, tokens, *rest)
    _break()
    results, after = _run(self, outputs, tokens, *rest)
    return [_broken(result, rows) for result in results], after


def _faulty_label(self: Any, tokens: Any, *rest: Any) -> Any:
    rows = (tokens == int(os.environ["FAULT_LABEL_TOKEN"])).any(axis=1)
    if not _armed() or not rows.any():
        return _label(self, tokens, *rest)
    _break()
    logprobs, after = _label(self, tokens, *rest)
    return _broken(logprobs, rows), after


def _break() -> None:
    """What a run does instead, or first."""
    if FAULT == "raise":
        raise RuntimeError("the run broke")
    if FAULT == "hang":
        time.sleep(600)
    if FAULT == "slow":
        # In parts: what is left of a sleep is over when a stopped process goes on.
        for _ in range(12):
            time.sleep(0.05)


def _broken(result: Any, rows: Any) -> Any:
    """What a run gives, with numbers in these rows that are none."""
    if FAULT in {"nan", "infinity"}:
        result = result.copy()
        result[rows] = np.nan if FAULT == "nan" else np.inf
    return result


def _deadly_end_read(self: Any, row: Any) -> None:
    if _armed() and (row.tokens == int(os.environ["FAULT_TOKEN"])).any():
        raise RuntimeError("a bug in the runner")
    _end_read(self, row)


def _jumping_time() -> float:
    return _time() + (3600.0 if _armed() else 0.0)


setattr(OnnxLanguageModelSession, "_run", _faulty_run)  # noqa: B010 (mypy would have it typed)
setattr(OnnxLabelerSession, "_run", _faulty_label)  # noqa: B010
if FAULT == "die":
    setattr(LanguageModelRunner, "_end_read", _deadly_end_read)  # noqa: B010
if FAULT == "clock":
    time.time = _jumping_time

if __name__ == "__main__":
    sys.exit(service.__main__.main())
