"""What the soak's requests are made of: how one is sent, and random texts.

Sizes are spread over orders of magnitude: most texts are short, some are long.
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Outcome: TypeAlias = Literal["answered", "refused", "either"]

JSON = "application/json"
_MOST_CHARS = 1000
_ALPHABETS = (
    "abcdefghijklmnopqrstuvwxyz     ,.'\n",
    "abcdefghijklmnopqrstuvwxyz     ,.'\n",
    "".join(map(chr, range(32, 127))),
    "äöüßéèñçøåÆœŁž ",
    "абвгдежзиклмнопрсту αβγδεζηθ ",
    "兎物語の白い時計、。",
    "שלום مرحبا ",
    "😀🐇☃🎩🫖👩‍👧 ",
    "e\u0301a\u0323o\u0308n\u0303 ",
    " \t\r\n\u0085\u2028\u00a0\ufeff",
    "\x00\x01\x1b\x7f\ue002\ue003\uffff",
)


@dataclass(frozen=True, slots=True)
class Models:
    """The names of the served models."""

    language: Sequence[str]
    pairs: Sequence[str]
    classifiers: Sequence[str]
    taggers: Sequence[str]


@dataclass(frozen=True, slots=True)
class Wire:
    """A request as it is sent. With `pieces` 0, the body is sent at once."""

    kind: str
    method: str
    path: str
    body: bytes | None = None
    content_type: str = JSON
    pieces: int = 0
    timeout_s: float | None = None  # of X-Request-Timeout, perhaps too short
    outcome: Outcome = "either"


States: TypeAlias = Mapping[str, Sequence[str]]


def text(rng: random.Random, most: int = _MOST_CHARS) -> str:
    """A text in one or two scripts; a length of 10 to 100 is as likely as one of 100 to 1,000."""
    length = size(rng, most)
    alphabet = rng.choice(_ALPHABETS)
    if rng.random() < 0.3:
        alphabet += rng.choice(_ALPHABETS)
    return "".join(rng.choices(alphabet, k=length))


def size(rng: random.Random, most: int) -> int:
    """A number from 0 to `most`, spread over orders of magnitude."""
    return int((most + 1) ** rng.random()) - (rng.random() < 0.05)


def posted(kind: str, path: str, body: Mapping[str, Any], outcome: Outcome = "either") -> Wire:
    """A POST of a JSON body."""
    return Wire(kind, "POST", path, json.dumps(body).encode(), outcome=outcome)


def one_or_more(
    rng: random.Random, draw: Callable[[random.Random], str], most: int
) -> str | list[str]:
    """What is drawn, or a list of up to `most` such."""
    if rng.random() < 0.6:
        return draw(rng)
    return [draw(rng) for _ in range(1 + size(rng, most - 1))]
