"""The journal in the folder of outputs: the progress of each file, so that a run can be resumed.

JSON lines, append-only: the first describes the run, and each of the others is the state of a file.
The last line of a file counts. A state is written only after its output is on the disk, so it never
counts output that a kill could lose.
"""

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from service.batch.errors import BatchError
from service.batch.files import InputFile

NAME = "unroll.journal"


@dataclass(frozen=True, kw_only=True, slots=True)
class FileState:
    """The progress of one file."""

    output: str
    input: str
    size_bytes: int  # of the input when it was first read; shows, like the next one, a change
    changed_ns: int
    offset: int = 0  # of the input's next chunk
    line: int = 1
    written: int = 0  # bytes of output
    chars: int = 0
    errors: int = 0
    position: int = 0  # bytes of the input file that have been read
    is_done: bool = False

    @classmethod
    def of(cls, file: InputFile) -> Self:
        """The state of a file that has not been started."""
        return cls(
            output=str(file.output),
            input=str(file.path.resolve()),
            size_bytes=file.size_bytes,
            changed_ns=file.changed_ns,
        )

    @property
    def _source(self) -> tuple[str, int, int]:
        return self.input, self.size_bytes, self.changed_ns

    def is_of(self, file: InputFile) -> bool:
        """Whether the input is still what it was."""
        return self._source == FileState.of(file)._source  # noqa: SLF001


class Journal:
    """The open journal of one run; no other process can open it."""

    def __init__(self, folder: Path, run: Mapping[str, Any]) -> None:
        """`run` is what outputs depend on. Raises BatchError if the journal has a different one."""
        self.states: dict[str, FileState] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / NAME
        self._file = self._path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise BatchError(f"{folder}: another run is writing to it") from error
        try:
            self._read(run)
        except BatchError:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, state: FileState) -> None:
        """Record a state; it is on the disk when this returns."""
        self._add(asdict(state))
        self.states[state.output] = state

    def _add(self, entry: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self, run: Mapping[str, Any]) -> None:
        self._file.seek(0)
        whole, end, _ = self._file.read().rpartition(b"\n")
        # A kill may have left half a line, which is dropped.
        self._file.truncate(len(whole) + len(end))
        lines = whole.splitlines()
        try:
            entries = [json.loads(line) for line in lines]
            found = entries[0] if entries else None
            states = [FileState(**entry) for entry in entries[1:]]
        except (ValueError, TypeError) as error:
            raise BatchError(f"{self._path} is damaged; choose another --output") from error
        if found is None:
            self._add(run)
        elif found != run:
            changed = [name for name in run if found.get(name) != run[name]]
            raise BatchError(
                f"{self._path.parent} holds results of another run: its {' and '.join(changed)} "
                f"differed. Run the same command as before, or choose another --output (or delete "
                f"{self._path.parent})"
            )
        self.states = {state.output: state for state in states}
