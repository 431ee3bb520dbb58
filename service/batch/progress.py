"""Progress on standard error: a line that is rewritten on a terminal, else one now and then."""

import sys
import time
from dataclasses import dataclass, field
from typing import TextIO

_TERMINAL_S = 0.5
_LOG_S = 10.0


@dataclass(kw_only=True, slots=True)
class Progress:
    """What has been done since the start, and before it."""

    files: int
    size_bytes: int  # of all inputs
    to: TextIO = field(default_factory=lambda: sys.stderr)
    files_done: int = 0
    bytes_before: int = 0  # of inputs, done by an earlier run
    bytes_done: int = 0  # of inputs, since the start
    lines: int = 0
    chars: int = 0
    _began: float = field(default_factory=time.monotonic)
    _shown: float = field(default_factory=time.monotonic)
    _width: int = 0

    def show(self) -> None:
        """Write the progress, unless it was written a moment ago."""
        now, is_terminal = time.monotonic(), self.to.isatty()
        if now - self._shown < (_TERMINAL_S if is_terminal else _LOG_S):
            return
        self._shown = now
        line = self._line(now - self._began)
        if is_terminal:
            self.to.write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self.to.write(line + "\n")
        self.to.flush()

    def clear(self) -> None:
        """Erase the line on a terminal, before anything else is written."""
        if self._width:
            self.to.write("\r" + " " * self._width + "\r")
            self._width = 0

    def summary(self) -> str:
        """What was done since the start."""
        seconds = time.monotonic() - self._began
        return (
            f"{self.lines:,} lines, {self.chars:,} characters in {_duration(seconds)} "
            f"({self._rate(self.chars, seconds)} characters/s)"
        )

    def _line(self, seconds: float) -> str:
        done = self.bytes_before + self.bytes_done
        parts = [
            f"{self.files_done} of {self.files} files",
            f"{done / max(self.size_bytes, 1):.1%}",
            f"{self._rate(self.lines, seconds)} lines/s",
            f"{self._rate(self.chars, seconds)} characters/s",
        ]
        if self.bytes_done:
            left = max(self.size_bytes - done, 0) * seconds / self.bytes_done
            parts.append(f"{_duration(left)} left")
        return ", ".join(parts)

    def _rate(self, count: int, seconds: float) -> str:
        return f"{count / max(seconds, 1e-3):,.0f}"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}:{rest:02} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02} h"
