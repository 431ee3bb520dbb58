"""The runner of language models: rows that read a text beside rows that write one."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from service.decoding.read_batch import ReadBatch
from service.decoding.rows import ReadRow, WriteRow
from service.decoding.write_batch import WriteBatch
from service.errors import ServiceError
from service.runtime.language_model import LanguageModelSession
from service.scheduling.failures import run_failed

# Tokens that a row reads in one run. While other rows write, it is small, so that a long prompt
# delays them by a few steps only. The results do not depend on it.
READ_CHUNK = 64
READ_CHUNK_WHILE_WRITING = 8
# A prompt of at most this many tokens is read token by token, in steps that other rows take anyway.
MAX_STEPPED_PROMPT = 64

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class TextWork:
    """One input of a request: a text to read, then the choices to write after it."""

    read: ReadRow
    write: list[WriteRow] = field(default_factory=list)
    held: int = 0  # numbers held beside the tokens, such as those of a constraint
    adapt: bool = False  # whether the model learns from it
    # Looked up several times for each request, and so made once:
    rows: int = field(init=False)  # the most it holds at any time
    queued_tokens: int = field(init=False)  # what it counts towards the queue's limit

    def __post_init__(self) -> None:
        self.rows = max(1, len(self.write))
        written = sum(row.max_tokens for row in self.write)
        self.queued_tokens = len(self.read.tokens) + written + self.held

    @property
    def steps_its_prompt(self) -> bool:
        """Whether its only choice can read the prompt in the steps of the rows that write."""
        read = self.read
        plain = read.wants_continuation and read.uncounted == len(read.tokens)
        waits = [row for row in self.write if row.finish_reason is None]
        return plain and len(waits) == len(self.write) == 1 and read.remaining <= MAX_STEPPED_PROMPT

    @property
    def remaining(self) -> int:
        """Tokens still to read."""
        return self.read.remaining

    @property
    def first_token_at(self) -> float | None:
        """When the first of its choices had a token; None if it writes none."""
        begun = [row.began for row in self.write if row.began is not None]
        return min(begun, default=None)

    @property
    def written_tokens(self) -> int:
        """Tokens of its longest choice: the choices are written side by side."""
        return max((len(row.tokens) for row in self.write), default=0)


Ended = list[tuple[TextWork, ServiceError | None]]


class _Batches:
    """The rows of one session."""

    def __init__(self, session: LanguageModelSession, max_rows: int) -> None:
        self.reading = ReadBatch(session)
        self.writing = WriteBatch(session, max_rows)


class LanguageModelRunner:
    """An iteration is one chunk for the rows that read and one step for the rows that write.

    Work that adapts runs in batches of its own, beside the others.
    """

    def __init__(
        self,
        session: LanguageModelSession,
        max_rows: int,
        *,
        name: str,
        adapting: LanguageModelSession | None = None,
    ) -> None:
        """`adapting` is the same model while it adapts; None if it cannot."""
        self._name = name
        self._max_rows = max_rows
        self._adapting = adapting
        # By whether their work adapts. States that do are large: their arrays are made once needed.
        self._batches = {False: _Batches(session, max_rows)}
        self._work_of_row: dict[int, TextWork] = {}  # by id of the row
        self._closing: dict[int, WriteRow] = {}  # choices by id of the read of their last token
        self._used_rows = 0
        self._ended: Ended = []

    @property
    def used_rows(self) -> int:
        """Rows that the admitted work holds now."""
        return self._used_rows

    @property
    def free(self) -> bool:
        """Whether it holds no work and no row, counted apart from `used_rows`."""
        rows = [
            row
            for batches in list(self._batches.values())  # other threads ask, too
            for row in (*batches.reading.rows, *batches.writing.rows)
        ]
        return not (self._work_of_row or self._closing or self._used_rows or rows)

    def admit(self, work: Sequence[TextWork]) -> None:
        """Put the prompt of each piece of work into the batch that reads it."""
        for piece in work:
            self._used_rows += piece.rows
            self._work_of_row[id(piece.read)] = piece
        for piece in work:
            self._begin(piece)

    def _batches_of(self, work: TextWork) -> _Batches:
        if work.adapt and True not in self._batches:
            if self._adapting is None:
                raise RuntimeError("this model cannot adapt")
            self._batches[True] = _Batches(self._adapting, self._max_rows)
        return self._batches[work.adapt]

    def _begin(self, work: TextWork) -> None:
        if not work.read.remaining:
            # The whole prompt is known already, from a cache or a resumed state.
            self._end_read(work.read)
            return
        batches = self._batches_of(work)
        if batches.writing.rows and work.steps_its_prompt:
            (write,) = work.write
            del self._work_of_row[id(work.read)]
            self._work_of_row[id(write)] = work
            batches.writing.add_reading(write, work.read)
        else:
            batches.reading.add(work.read)

    def run(self) -> Ended:
        """Run one iteration; the work that it returns has left its batches."""
        for batches in self._batches.values():
            if batches.reading.rows:
                self._read(batches.reading)
            if batches.writing.rows:
                self._write(batches)
        ended, self._ended = self._ended, []
        return ended

    def drop(self, work: Sequence[TextWork]) -> None:
        """Remove every row of the work."""
        reads, writes = [], []
        for piece in work:
            if self._work_of_row.pop(id(piece.read), None) is not None:
                self._used_rows -= piece.rows
                reads.append(piece.read)
            writes += [x for x in piece.write if self._work_of_row.pop(id(x), None) is not None]
        self._used_rows -= len(writes)
        for row in writes:
            if row.closing is not None:
                self._closing.pop(id(row.closing), None)
                reads.append(row.closing)
        for batches in self._batches.values():
            if reads:
                batches.reading.remove(reads)
            if writes:
                batches.writing.remove(writes)

    def clear(self) -> None:
        """Drop all work: the worker has ended."""
        self._work_of_row.clear()
        self._closing.clear()
        self._used_rows = 0
        for batches in self._batches.values():
            batches.reading.rows.clear()
            batches.writing.rows.clear()

    def _read(self, reading: ReadBatch) -> None:
        any_writes = any(batches.writing.rows for batches in self._batches.values())
        chunk = READ_CHUNK_WHILE_WRITING if any_writes else READ_CHUNK
        try:
            done, failed = reading.run(chunk)
        except Exception:  # whatever the runtime raises fails the rows of this batch only
            logger.exception("engine %s: a model run raised", self._name)
            rows = list(reading.rows)
            done, failed = [], [(row, run_failed()) for row in rows]
            reading.remove(rows)
        for row in done:
            self._end_read(row)
        for row, error in failed:
            self._fail(row, error)

    def _write(self, batches: _Batches) -> None:
        writing = batches.writing
        for row in writing.sample():
            if row.closing is None:
                self._end_write(row)
            else:
                self._closing[id(row.closing)] = row
                batches.reading.add(row.closing)
        if not writing.rows:
            return
        try:
            failed = writing.run()
        except Exception:  # as in `_read`
            logger.exception("engine %s: a model run raised", self._name)
            rows = list(writing.rows)
            failed = [(row, run_failed()) for row in rows]
            writing.remove(rows)
        for row, error in failed:
            self._fail(row, error)

    def _end_read(self, row: ReadRow) -> None:
        written = self._closing.pop(id(row), None)
        if written is not None:
            written.continuation = row.continuation
            self._end_write(written)
            return
        work = self._work_of_row.pop(id(row))
        if row.remember is not None and row.continuation is not None:
            row.remember(row.tokens, row.continuation)
        pending = [write for write in work.write if write.finish_reason is None]
        if not pending or row.continuation is None:
            self._used_rows -= work.rows
            self._ended.append((work, None))
            return
        self._used_rows -= work.rows - len(pending)
        for write in pending:
            self._work_of_row[id(write)] = work
            self._batches_of(work).writing.add(write, row.continuation)
        if work.adapt:
            row.continuation = None  # it is large, and nobody asks for it once a text has tokens

    def _end_write(self, row: WriteRow) -> None:
        if row.listener is not None:
            row.listener.ended()
        work = self._work_of_row.pop(id(row))
        self._used_rows -= 1
        # Not by finish_reason: several rows may end in one step, but the work ends only once.
        if not any(id(write) in self._work_of_row for write in work.write):
            self._ended.append((work, None))

    def _fail(self, row: ReadRow | WriteRow, error: ServiceError) -> None:
        """Fail the work of a row that has left its batch; remove the other rows of that work."""
        work = self._work_of_row.get(id(self._closing.get(id(row), row)))
        if work is not None:  # otherwise another of its rows has failed in this run
            self.drop([work])
            self._ended.append((work, error))
