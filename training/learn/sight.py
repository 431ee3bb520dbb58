"""What files seem to hold: the kind of data, and what is needed to choose for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from service.bundle.tokenization import Tokenization
from training.learn.survey import Survey

Kind = Literal["lines", "file", "pairs", "labels", "tags", "accents"]
KINDS: tuple[Kind, ...] = ("lines", "file", "pairs", "labels", "tags", "accents")


@dataclass(frozen=True, slots=True)
class Side:
    """One side of pairs."""

    name: str  # of the column or the file, for people
    tokenization: Tokenization
    reason: str
    mean_chars: float
    lang: str = ""  # from the file's name, where it has one


@dataclass(frozen=True, slots=True)
class Labelled:
    """How texts are labelled, or what they lose."""

    options: Mapping[str, Any]  # of the section `data`
    mean_chars: float  # of a text
    long_chars: int  # a length that few texts exceed
    names: int | None = None  # different labels in the sample; None: characters are restored


@dataclass(frozen=True, slots=True)
class Sight:
    """What the files seem to hold, and why."""

    kind: Kind
    reason: str
    files: Sequence[Path]  # or the folders that hold a folder for each label
    texts: int  # documents: files or lines that are not blank; pairs; labelled texts
    chars: int
    characters: int  # different ones
    aligned: bool = False  # pairs: two files with a line each, not a TSV
    source: Side | None = None
    target: Side | None = None
    labelled: Labelled = field(default_factory=lambda: Labelled({}, 0.0, 0))
    hint: str | None = None  # what else it could be, and the option for it


def characters_of(surveys: Sequence[Survey]) -> int:
    """Different characters."""
    return len(set[str]().union(*(found.characters for found in surveys)))
