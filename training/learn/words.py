"""What `learn` prints: durations, lists, and the request that uses the model."""

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Any


def seconds(value: float) -> str:
    """A duration: `40 seconds`, `12 minutes`."""
    if value < 90:
        return f"{max(2, round(value))} seconds"
    return f"{round(value / 60)} minutes"


def curl(path: str, body: Mapping[str, Any]) -> str:
    """A request as a line for a POSIX shell, to where a server here listens without flags."""
    port = os.environ.get("UNROLL_PORT", "")
    url = f"http://127.0.0.1:{port if port.isdecimal() else 8000}"
    words = ["curl", "-s", url + path, "-H", "Content-Type: application/json"]
    return shlex.join([*words, "-d", json.dumps(body, ensure_ascii=False)])


def listing(title: str, lines: Sequence[str]) -> str:
    """A title and lines below it."""
    return "\n".join([title, *(f"  {line}" for line in lines)])
