"""What the lines of a text file look like: counts of all of it, statistics of a sample."""

import itertools
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from service.bundle.text import Normalization
from training.data.documents import stream_text

# Lines in the sample; counts cover all lines.
SAMPLE_LINES = 20_000
_CONTINUED = re.compile(r"[,;:\-\u2013\u2014]$")
_SPACES = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Survey:
    """One file: counts of all of it, and the first lines that are not blank."""

    path: Path
    chars: int  # line ends not counted
    lines: int  # blank ones included, without an empty rest after the last line end
    blank_lines: int
    blank_between: int  # blank lines with text on both sides
    characters: set[str]  # different ones
    sample: Sequence[str]  # the first SAMPLE_LINES lines that are not blank

    @property
    def texts(self) -> int:
        """Lines that are not blank."""
        return self.lines - self.blank_lines


@dataclass(frozen=True)
class LineShapes:
    """Statistics of lines that are not blank, to decide what a line is."""

    lines: Sequence[str]

    @cached_property
    def lengths(self) -> list[int]:
        """Characters of each line, in order of size."""
        return sorted(len(line) for line in self.lines)

    @cached_property
    def median_chars(self) -> int:
        """Characters of the median line."""
        return self.quantile(0.5)

    @cached_property
    def median_words(self) -> float:
        """Words of the median line."""
        return statistics.median(len(line.split()) for line in self.lines)

    def quantile(self, share: float) -> int:
        """The length that `share` of the lines do not exceed."""
        return self.lengths[min(len(self.lengths) - 1, int(share * len(self.lengths)))]

    @cached_property
    def wrapped(self) -> float:
        """Share of lines that continue with a lower-case letter in the next line."""
        following = itertools.pairwise(self.lines)
        return self._share(
            1 for line, after in following if line[-1:] not in '.!?:"”' and after[:1].islower()
        )

    @cached_property
    def continued(self) -> float:
        """Share of lines that end with a comma, a semicolon, a colon or a dash: verse, code."""
        return self._share(1 for line in self.lines if _CONTINUED.search(line.rstrip()))

    @cached_property
    def indented(self) -> float:
        """Share of lines that begin with white space."""
        return self._share(1 for line in self.lines if line[:1].isspace())

    @cached_property
    def sentences(self) -> float:
        """Share of lines within which a sentence ends."""
        return self._share(1 for line in self.lines if re.search(r"[.!?] ", line))

    @cached_property
    def tabbed(self) -> float:
        """Share of lines with a tab between two texts."""
        return self._share(1 for line in self.lines if "\t" in line.strip())

    @cached_property
    def filled(self) -> float:
        """The median length over the longest usual one: near 1 where lines are wrapped."""
        return self.median_chars / max(1, self.quantile(0.95))

    @cached_property
    def alike(self) -> float:
        """Share of lines whose first word has one of the three most usual shapes (`2024-01-02`)."""
        shapes = Counter(_shape(_SPACES.split(line.strip(), maxsplit=1)[0]) for line in self.lines)
        usual = [n for shape, n in shapes.most_common(3) if shape != "a"]
        return sum(usual) / max(1, len(self.lines))

    def _share(self, hits: Iterator[int]) -> float:
        return sum(hits) / max(1, len(self.lines))


def _shape(word: str) -> str:
    """A word with each run of digits as 0 and of letters as a: `2024-01-02T` is `0-0-0a`."""
    return re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "0", word))


def survey(path: Path) -> Survey:
    """Read a file once. Raises ConfigError if it is not text."""
    chars = lines = blank = blank_between = pending = 0
    sample: list[str] = []
    characters: set[str] = set()
    for line in text_lines(path):
        lines += 1
        chars += len(line)
        characters.update(line)
        if not line.strip():
            blank += 1
            pending += 1
            continue
        blank_between += pending if lines - 1 > pending else 0
        pending = 0
        if len(sample) < SAMPLE_LINES:
            sample.append(line)
    return Survey(path, chars, lines, blank, blank_between, characters, sample)


def text_lines(path: Path) -> Iterator[str]:
    """The lines of a file, as training reads them."""
    rest = ""
    for piece in stream_text(path, Normalization()):
        *whole, rest = (rest + piece).split("\n")
        yield from whole
    if rest:
        yield rest
