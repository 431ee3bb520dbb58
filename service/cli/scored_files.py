"""`score --input`: scores files of texts in worker processes."""

import argparse
import hashlib
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from service.batch.errors import BatchError
from service.batch.files import input_files
from service.batch.job import Job
from service.batch.journal import Journal
from service.batch.progress import Progress
from service.batch.workers import Workers
from service.bundle.store import MANIFEST_FILE
from service.cli.answers import CommandError
from service.cli.bundle import Bundle
from service.cli.file_scorer import FileScorer, head_of
from service.cli.scored_rows import figure_columns
from service.runtime.cpus import usable_cpus

_SUFFIXES = {"text": ".txt", "tsv": ".tsv", "json": ".ndjson"}
# Options that change where results go and how fast, but not the results.
_FREE = {"bundle", "command", "input", "output", "texts", "url", "workers"}
_INTERRUPTED, _TERMINATED = 130, 143


class _Terminated(BaseException):
    """SIGTERM."""


def score_files(options: argparse.Namespace) -> int:
    """Score the files. Returns the exit status: 1 if a line or a file could not be scored.

    Raises CommandError.
    """
    _check(options)
    try:
        return _scored(options)
    except BatchError as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise CommandError(f"{where}{error.strerror}") from error


def _check(options: argparse.Namespace) -> None:
    if options.bundle is None:
        raise CommandError("--input needs --bundle, since it runs the model in its own processes")
    if options.output is None:
        raise CommandError("--input needs --output, the folder of the results")
    if options.texts:
        raise CommandError("--input: texts are read from the files, not from the command line")
    if options.workers is not None and options.workers < 1:
        raise CommandError("--workers must be at least 1")


def _scored(options: argparse.Namespace) -> int:
    are_records = options.field is not None or options.source_field is not None
    files = input_files(
        options.input, options.output, _SUFFIXES[options.format], are_records=are_records
    )
    if any(file.kind == "table" for file in files):
        figure_columns(options)
    bundle = Bundle(options.bundle)
    count = options.workers or usable_cpus()
    progress = Progress(files=len(files), size_bytes=sum(x.size_bytes for x in files))

    def report(line: str) -> None:
        progress.clear()
        sys.stderr.write(f"error: {line}\n")
        sys.stderr.flush()

    with Workers(FileScorer(bundle, options), count) as workers:
        workers.submit(None).result()
        with _termination(), Journal(options.output, _run_of(options)) as journal:
            job = Job(
                files=files,
                folder=options.output,
                journal=journal,
                workers=workers,
                progress=progress,
                report=report,
                column=options.field or "text",
                head=head_of(options),
            )
            try:
                job.run()
            except (KeyboardInterrupt, _Terminated) as signalled:
                progress.clear()
                sys.stderr.write(
                    f"stopped: {progress.summary()}. The same command continues from here:\n"
                    f"  {shlex.join(sys.orig_argv)}\n"
                )
                return _TERMINATED if isinstance(signalled, _Terminated) else _INTERRUPTED
    progress.clear()
    failed = "" if not job.errors else f"; {job.errors:,} lines could not be scored"
    sys.stderr.write(
        f"{progress.files_done} of {progress.files} files: {progress.summary()}{failed}\n"
    )
    return int(job.errors > 0 or job.damaged > 0)


def _run_of(options: argparse.Namespace) -> dict[str, Any]:
    """What results depend on, besides the inputs."""
    manifest = (options.bundle / MANIFEST_FILE).read_bytes()  # with the digests of all files
    asked = {name: value for name, value in vars(options).items() if name not in _FREE}
    return {
        "bundle": hashlib.sha256(manifest).hexdigest(),
        "options": {name: value for name, value in sorted(asked.items()) if value},
    }


@contextmanager
def _termination() -> Iterator[None]:
    """SIGTERM ends the run as an interrupt does."""

    def end(_number: int, _frame: FrameType | None) -> NoReturn:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
