"""A run over files: sends chunks to workers, writes results in order and states to the journal."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from service.batch.chunks import chunks
from service.batch.compression import compressed
from service.batch.errors import BatchError, DamagedFile
from service.batch.files import InputFile
from service.batch.input_stream import InputStream
from service.batch.journal import FileState, Journal
from service.batch.output_file import OutputFile, keep, part_of, whole_of
from service.batch.progress import Progress
from service.batch.tables import row_works
from service.batch.work import Done, Work
from service.batch.workers import Workers

# Lines that are reported one by one; the others are counted.
_MOST_REPORTED = 20


@dataclass(frozen=True, slots=True)
class _Begin:
    file: InputFile
    state: FileState


@dataclass(frozen=True, slots=True)
class _End:
    damage: DamagedFile | None = None


# A step of the run, in the order of the files; a piece of work has the future of its result.
_Step: TypeAlias = "_Begin | _End | tuple[Work, Future[Done]]"


@dataclass(kw_only=True)
class Job:
    """A run over files."""

    files: Sequence[InputFile]
    folder: Path
    journal: Journal
    workers: Workers[Work | None, Done]
    progress: Progress
    report: Callable[[str], None]
    column: str = "text"  # of the texts in tables
    head: bytes = b""  # before the first line of outputs of lines of text
    errors: int = field(default=0, init=False)
    damaged: int = field(default=0, init=False)
    _open: OutputFile | None = field(default=None, init=False)

    def run(self) -> None:
        """Go through all files. Raises BatchError if the run cannot continue."""
        todo = self._todo()
        steps: deque[_Step] = deque()
        working = 0
        try:
            for step in self._steps(todo):
                steps.append(step)
                working += isinstance(step, tuple)
                while steps and (working >= self.workers.most_at_once or not _waits(steps[0])):
                    working -= isinstance(steps[0], tuple)
                    self._take(steps.popleft())
            while steps:
                self._take(steps.popleft())
        except OSError as error:
            self._open = None
            raise BatchError(
                f"{error.filename or self.folder}: {error.strerror}; once that is solved, the same "
                "command continues where this run stopped"
            ) from error
        finally:
            if self._open is not None:
                self._open.save()
                self._open.close()

    def _todo(self) -> list[tuple[InputFile, FileState]]:
        """The files that are not done, each with where it continues. Raises BatchError."""
        todo = []
        for file in self.files:
            state = self._state(file)
            self.progress.bytes_before += state.position
            self.errors += state.errors
            if state.is_done:
                keep(self.folder / file.output, file.kind)
                self.progress.files_done += 1
            else:
                todo.append((file, state))
        return todo

    def _state(self, file: InputFile) -> FileState:
        known = self.journal.states.get(str(file.output))
        output = self.folder / file.output
        part = part_of(output)
        if known is None:
            if output.exists():
                raise BatchError(
                    f"{output} already exists and is not from this run; choose another --output"
                )
            return FileState.of(file)
        if not known.is_of(file):
            made = next((x for x in (output, part) if x.exists()), None)
            if made is None:
                return FileState.of(file)
            raise BatchError(
                f"{file.path} has changed since {made} was written; delete {made} to score it "
                "again, or choose another --output"
            )
        is_there = any(x.exists() for x in (whole_of(output, file.kind), part)) or (
            known.is_done and output.exists()
        )
        # If somebody has deleted the output, it is made again.
        return known if is_there else FileState.of(file)

    def _steps(self, todo: Sequence[tuple[InputFile, FileState]]) -> Iterator[_Step]:
        """Read the files and hand out the work. Raises OSError."""
        for file, state in todo:
            yield _Begin(file, state)
            try:
                for work in self._works(file, state):
                    yield work, self.workers.submit(work)
            except DamagedFile as damage:
                yield _End(damage)
            else:
                yield _End()

    def _works(self, file: InputFile, state: FileState) -> Iterator[Work]:
        if file.kind == "table":
            return row_works(file, offset=state.offset, column=self.column)
        return _works(file, state)

    def _take(self, step: _Step) -> None:
        match step:
            case _Begin(file, state):
                head = compressed(self.head, file.compression) if file.kind == "lines" else b""
                self._open = OutputFile(self.folder, file, state, self.journal, head)
            case _End(damage):
                self._end(damage)
            case (work, future):
                self._write(work, future.result())

    def _write(self, work: Work, done: Done) -> None:
        output = self._open
        if output is None:
            raise RuntimeError("a result without an open file")
        before = output.state
        output.add(work, done)
        for line, cause in done.reports:
            self.errors += 1
            if self.errors <= _MOST_REPORTED:
                self.report(f"{before.input}: line {line}: {cause}")
        self.errors += done.errors - len(done.reports)
        progress = self.progress
        progress.lines += work.chunk.lines
        progress.chars += done.chars
        progress.bytes_done += work.position - before.position
        progress.show()

    def _end(self, damage: DamagedFile | None) -> None:
        output, self._open = self._open, None
        if output is None:
            raise RuntimeError("an end without an open file")
        if damage is None:
            self.progress.bytes_done += output.state.size_bytes - output.state.position
            output.finish()
            self.progress.files_done += 1
            return
        output.save()
        output.close()
        self.damaged += 1
        self.report(
            f"{output.state.input}: it is cut off or damaged after line {output.state.line - 1} "
            f"({damage}); the lines before are scored in {output.part}"
        )


def _waits(step: _Step) -> bool:
    return isinstance(step, tuple)


def _works(file: InputFile, state: FileState) -> Iterator[Work]:
    """The work that is left in a file. Raises DamagedFile and OSError."""
    with InputStream(file) as stream:
        first = stream.skip(state.offset) if state.offset else b""

        def read() -> bytes:
            nonlocal first
            data, first = first, b""
            return data or stream.read()

        for chunk in chunks(read, offset=state.offset, line=state.line):
            yield Work(file.kind, file.compression, chunk, stream.position)
