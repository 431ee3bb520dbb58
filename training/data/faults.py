"""Lines that cannot be used: a few are dropped and counted, many reject the file."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from service.bundle.text import is_blank
from training.errors import ConfigError
from training.text_files import read_lines

_RARE = 0.05  # such lines are dropped up to this share; above it, the file is rejected


class Faults:
    """The unusable lines of one file."""

    def __init__(self, path: Path, counts: Counter[str], expected: str) -> None:
        self._path = path
        self._counts = counts
        self._expected = expected  # what a line is, for the error
        self._first: tuple[int, str] | None = None
        self._dropped = 0
        self.lines = 0  # that are not blank

    def drop(self, number: int, reason: str, found: str) -> None:
        """Count line `number`: `reason` says why in a few words, `found` in a sentence."""
        self._counts["read"] += 1
        self._counts[f"dropped: {reason}"] += 1
        self._dropped += 1
        self._first = self._first or (number, found)

    def check(self) -> None:
        """Raise ConfigError, with the first such line, if there are many."""
        if self._first is not None and self._dropped > _RARE * self.lines:
            number, found = self._first
            raise ConfigError(
                f"{self._path}, line {number}: {found}, as in {self._dropped:,} of "
                f"{self.lines:,} lines; {self._expected}"
            )


def two_columns(path: Path, counts: Counter[str], faults: Faults) -> Iterator[tuple[int, str, str]]:
    """Line numbers and the first two columns of a TSV file; further columns are counted.

    Raises ConfigError at the end if many lines have no tab, or another fault.
    """
    for number, line in enumerate(read_lines(path), start=1):
        if is_blank(line):
            counts["read"] += 1
            counts["dropped: empty"] += 1
            continue
        faults.lines += 1
        first, tab, rest = line.partition("\t")
        if not tab:
            faults.drop(number, "no tab", "there is no tab")
            continue
        second, more, _ = rest.partition("\t")
        if more:
            counts["ignored: further columns"] += 1
        yield number, first, second
    faults.check()
