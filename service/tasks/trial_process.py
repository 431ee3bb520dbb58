"""`python -m service.tasks.trial_process`: opens bundles one after another.

It writes an empty line when it is ready; then it reads a task a line and writes an outcome a line.
Its time and memory are limited (see trial.py); the kernel ends a process that takes too long.
"""

import gc
import logging
import os
import resource
import sys
from pathlib import Path
from typing import TextIO

from service.bundle.files import BundleError
from service.bundle.store import read_bundle
from service.tasks.folders import version_of
from service.tasks.kinds import Surroundings, open_engine
from service.tasks.trial import Outcome, Task

# Words in the errors of onnxruntime and numpy when an allocation fails.
_NO_MEMORY = ("allocate", "bad_alloc", "bad allocation", "MemoryError")
# Beside its files, a graph takes memory unpacked, and again with its weights packed for the CPU.
_COPIES = 4


def main() -> int:
    """Open bundles until standard input ends."""
    # The server itself logs what it serves in fp32 instead.
    logging.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _go_first()
    # Only answers go to standard output, whatever a library writes.
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        _write(answers, "")  # it is ready
        for line in sys.stdin:
            _write(answers, _tried(Task.model_validate_json(line)).model_dump_json())
    return 0


def _write(answers: TextIO, line: str) -> None:
    try:
        answers.write(line + "\n")
        answers.flush()
    except BrokenPipeError:
        os._exit(1)  # the server has ended


def _go_first() -> None:
    """If the machine runs out of memory, have this process killed and not the server."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000", "ascii")
    except OSError:
        # Not Linux, or not permitted: the limits hold all the same.
        return


def _tried(task: Task) -> Outcome:
    gc.collect()
    settings = task.settings
    _bound_time(settings.open_timeout_s)
    more_bytes = 0
    try:
        bundle = read_bundle(task.folder, contained=True)
        size = sum(map(len, bundle.graphs.values()))
        more_bytes = settings.open_memory_bytes + _COPIES * size
        _bound_memory(more_bytes)
        engine = open_engine(bundle, Surroundings(settings=settings, threads=task.threads))
    except BundleError as error:
        cause = str(error)
        if more_bytes and any(word in cause for word in _NO_MEMORY):
            cause = f"{task.folder.name}: {_too_much(more_bytes)}"
        return Outcome(error=cause)
    except MemoryError:
        return Outcome(error=f"{task.folder.name}: {_too_much(more_bytes)}")
    finally:
        _bound_memory(None)
    return Outcome(version=version_of(engine.manifest))


def _too_much(limit_bytes: int) -> str:
    limit = f"{limit_bytes / 2**20:.0f} MiB (open_memory_bytes, and {_COPIES} times its graphs)"
    return f"opening it and running its golden vectors takes more memory than {limit}"


def _bound_time(limit_s: float) -> None:
    """Limit the CPU time from here on; the kernel ends the process after that."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    whole = int(used.ru_utime + used.ru_stime + limit_s) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (whole, resource.RLIM_INFINITY))


def _bound_memory(more_bytes: int | None) -> None:
    """Limit the further memory of the process; None lifts the limit.

    There is no limit where the system does not report the current use (it is not Linux).
    """
    limit, now = resource.RLIM_INFINITY, Path("/proc/self/statm")
    if more_bytes is not None and now.exists():
        pages = int(now.read_text("ascii").split()[0])
        limit = pages * resource.getpagesize() + more_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


if __name__ == "__main__":
    sys.exit(main())
