"""Answers the lines of standard input as they arrive."""

import sys
from collections.abc import Callable
from itertools import groupby

from service.cli.answers import CommandError, Refusal
from service.cli.input_lines import InputLine, InputLines

_BATCH_CHARS = 64 * 1024
# After this many refusals and no answer, the rest is expected to be refused, too.
_HOPELESS = 20


class AnsweredLines:
    """Answers lines as they arrive; refused lines are reported and skipped."""

    def __init__(self, write: Callable[[list[str]], None], lines: InputLines) -> None:
        self._write = write
        self._lines = lines
        self._answered = self._failed = 0

    def run(self, lines_at_once: int, if_none: str | None = None) -> int:
        """Answer every line, or `if_none` if there is none. Returns the exit status."""
        for batch in self._lines.batches(lines_at_once, _BATCH_CHARS):
            for error, lines in groupby(batch, key=lambda line: line.error):
                if error is None:
                    self._answer(list(lines))
                else:
                    for line in lines:
                        self._fail(line, error)
            sys.stdout.flush()
        if if_none is not None and not self._answered and not self._failed:
            self._write([if_none])
        return int(self._failed > 0)

    def _answer(self, batch: list[InputLine]) -> None:
        """Send lines together; if they are refused, send each half by itself."""
        try:
            self._write([line.text for line in batch])
        except Refusal as error:
            if len(batch) > 1:
                middle = len(batch) // 2
                self._answer(batch[:middle])
                self._answer(batch[middle:])
                return
            if not error.is_of_text:
                raise
            self._fail(batch[0], str(error))
            if not self._answered and self._failed >= _HOPELESS:
                raise CommandError(
                    "every line was refused so far; the rest is not tried"
                ) from error
            return
        self._answered += len(batch)

    def _fail(self, line: InputLine, cause: str) -> None:
        self._failed += 1
        sys.stdout.flush()
        sys.stderr.write(f"error: {self._lines.name}: line {line.number}: {cause}\n")
