"""An output while it is written: `NAME.part`, which becomes `NAME` when it is complete."""

import os
import time
from dataclasses import replace
from pathlib import Path

from service.batch.files import InputFile, Kind
from service.batch.journal import FileState, Journal
from service.batch.tables import write_table
from service.batch.work import Done, Work

# How much work a kill may cost.
_JOURNAL_S = 5.0


def part_of(path: Path) -> Path:
    """Where an output is while it is written."""
    return path.with_name(f"{path.name}.part")


def whole_of(path: Path, kind: Kind) -> Path:
    """Where a complete output is before it gets its name."""
    return path.with_name(f"{path.name}.whole") if kind == "table" else part_of(path)


class OutputFile:
    """The open output of one input."""

    def __init__(
        self, folder: Path, file: InputFile, state: FileState, journal: Journal, head: bytes
    ) -> None:
        """`head` comes before the first result. Raises OSError."""
        self.path = folder / file.output
        self.part = part_of(self.path)
        self._kind = file.kind
        self.state = state
        self._journal = journal
        self._saved_at = time.monotonic()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # What was written after the last saved state is written again.
        self._file = self.part.open("r+b" if state.written else "wb")
        self._file.truncate(state.written)
        self._file.seek(state.written)
        if not state.written:
            self._file.write(head)
            self.state = replace(state, written=len(head))

    def add(self, work: Work, done: Done) -> None:
        """Append the result of a chunk. Raises OSError."""
        self._file.write(done.output)
        state = self.state
        self.state = replace(
            state,
            offset=work.chunk.end,
            line=work.chunk.first_line + work.chunk.lines,
            written=state.written + len(done.output),
            chars=state.chars + done.chars,
            errors=state.errors + done.errors,
            position=work.position,
        )
        if time.monotonic() - self._saved_at > _JOURNAL_S:
            self.save()

    def save(self) -> None:
        """Flush everything to the disk and record it in the journal. Raises OSError."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._journal.add(self.state)
        self._saved_at = time.monotonic()

    def finish(self) -> None:
        """Complete the output and give it its name. Raises OSError."""
        self.save()
        if self._kind == "table":
            write_table(self.part, whole_of(self.path, self._kind))
        self.state = replace(self.state, is_done=True, position=self.state.size_bytes)
        self._journal.add(self.state)
        self._file.close()
        keep(self.path, self._kind)

    def close(self) -> None:
        """Leave the part for a run that continues it."""
        self._file.close()


def keep(path: Path, kind: Kind) -> None:
    """Give a complete output its name, unless it has it already."""
    whole = whole_of(path, kind)
    if whole.exists():
        whole.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    part_of(path).unlink(missing_ok=True)
