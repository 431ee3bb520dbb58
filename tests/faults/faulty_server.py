"""`python -m service`, whose engine breaks in one way once a file is there.

`FAULT` says how, `FAULT_FILE` which file, and a row breaks that reads `TRIGGER`. Nothing of this is
in the service.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import service.__main__
from service.runtime.language_model import OnnxLanguageModelSession
from service.scheduling.language_model import LanguageModelRunner

TRIGGER = "z"
FAULT = os.environ["FAULT"]
FAULT_FILE = Path(os.environ["FAULT_FILE"])

_run = OnnxLanguageModelSession._run
_end_read = LanguageModelRunner._end_read
_time = time.time


def _armed() -> bool:
    return FAULT_FILE.exists()


def _faulty_run(self: Any, outputs: Any, tokens: Any, *rest: Any) -> Any:
    # Of the tiny bundles: the vocabulary stands in the session by ids alone.
    rows = (tokens == int(os.environ["FAULT_TOKEN"])).any(axis=1)
    if not _armed() or not rows.any():
        return _run(self, outputs, tokens, *rest)
    if FAULT == "raise":
        raise RuntimeError("the run broke")
    if FAULT == "hang":
        time.sleep(600)
    if FAULT == "slow":
        # In parts: what is left of a sleep is over when a stopped process goes on.
        for _ in range(12):
            time.sleep(0.05)
    results, after = _run(self, outputs, tokens, *rest)
    if FAULT in {"nan", "infinity"}:
        results = [result.copy() for result in results]
        for result in results:
            result[rows] = np.nan if FAULT == "nan" else np.inf
    return results, after


def _deadly_end_read(self: Any, row: Any) -> None:
    if _armed() and (row.tokens == int(os.environ["FAULT_TOKEN"])).any():
        raise RuntimeError("a bug in the runner")
    _end_read(self, row)


def _jumping_time() -> float:
    return _time() + (3600.0 if _armed() else 0.0)


setattr(OnnxLanguageModelSession, "_run", _faulty_run)  # noqa: B010 (mypy would have it typed)
if FAULT == "die":
    setattr(LanguageModelRunner, "_end_read", _deadly_end_read)  # noqa: B010
if FAULT == "clock":
    time.time = _jumping_time

if __name__ == "__main__":
    sys.exit(service.__main__.main())
