"""How far a run is: a bar on a terminal, elsewhere a line every few seconds."""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from tqdm import tqdm

_EVERY_S = 10.0


class Progress(Protocol):
    """What the trainer reports to."""

    def advance(self) -> None:
        """One more step is done."""

    def describe(self, text: str) -> None:
        """What the last steps were worth."""

    def write(self, lines: Sequence[str]) -> None:
        """Lines that stay."""

    def close(self) -> None:
        """Nothing more comes."""


class Bar:
    """A bar that is drawn over and over."""

    def __init__(self, done: int, steps: int) -> None:
        self._bar: tqdm[Any] = tqdm(
            total=steps, initial=done, unit="step", dynamic_ncols=True, smoothing=0.1
        )

    def advance(self) -> None:
        """Draw one more step."""
        self._bar.update()

    def describe(self, text: str) -> None:
        """Stand behind the bar."""
        self._bar.set_postfix_str(text)

    def write(self, lines: Sequence[str]) -> None:
        """Above the bar."""
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
        """Say where it stands, if that is long ago."""
        self._done += 1
        now = self._clock()
        if now - self._last < _EVERY_S:
            return
        self._last = now
        left_s = (now - self._started) / (self._done - self._first) * (self._steps - self._done)
        parts = [f"step {self._done:,} of {self._steps:,}", self._text, f"{_duration(left_s)} left"]
        self.write([", ".join(part for part in parts if part)])

    def describe(self, text: str) -> None:
        """Stand in the next line."""
        self._text = text

    def write(self, lines: Sequence[str]) -> None:
        """Line by line, at once."""
        sys.stderr.write("".join(f"{line}\n" for line in lines))
        sys.stderr.flush()

    def close(self) -> None:
        """There is nothing to end."""


def open_progress(done: int, steps: int) -> Progress:
    """A bar where somebody looks, else lines."""
    return Bar(done, steps) if sys.stderr.isatty() else Lines(done, steps)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
