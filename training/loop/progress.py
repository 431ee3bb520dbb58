"""Progress of a run: a bar on a terminal, a line every few seconds elsewhere."""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from tqdm import tqdm

_EVERY_S = 10.0


class Progress(Protocol):
    """Where the trainer reports its progress."""

    def advance(self) -> None:
        """Count one more step."""

    def describe(self, text: str) -> None:
        """Set the text beside the progress: the latest loss and speed."""

    def write(self, lines: Sequence[str]) -> None:
        """Print lines that stay."""

    def close(self) -> None:
        """End the report."""


class Bar:
    """A bar that is redrawn in place."""

    def __init__(self, done: int, steps: int) -> None:
        self._bar: tqdm[Any] = tqdm(
            total=steps, initial=done, unit="step", dynamic_ncols=True, smoothing=0.1
        )

    def advance(self) -> None:
        """Advance the bar."""
        self._bar.update()

    def describe(self, text: str) -> None:
        """Set the text behind the bar."""
        self._bar.set_postfix_str(text)

    def write(self, lines: Sequence[str]) -> None:
        """Print above the bar."""
        self._bar.write("\n".join(lines), sys.stderr)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()


class Lines:
    """Plain lines for files and pipes, at most one every `_EVERY_S` seconds."""

    def __init__(
        self, done: int, steps: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._first = self._done = done
        self._steps = steps
        self._started = self._last = clock()
        self._text = ""

    def advance(self) -> None:
        """Print a line if the last one was long enough ago."""
        self._done += 1
        now = self._clock()
        if now - self._last < _EVERY_S:
            return
        self._last = now
        left_s = (now - self._started) / (self._done - self._first) * (self._steps - self._done)
        parts = [f"step {self._done:,} of {self._steps:,}", self._text, f"{_duration(left_s)} left"]
        self.write([", ".join(part for part in parts if part)])

    def describe(self, text: str) -> None:
        """Set the text of the next line."""
        self._text = text

    def write(self, lines: Sequence[str]) -> None:
        """Print at once."""
        sys.stderr.write("".join(f"{line}\n" for line in lines))
        sys.stderr.flush()

    def close(self) -> None:
        """Nothing to do."""


def open_progress(done: int, steps: int) -> Progress:
    """A bar on a terminal, lines elsewhere."""
    return Bar(done, steps) if sys.stderr.isatty() else Lines(done, steps)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
