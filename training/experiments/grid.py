"""The runs of a grid: every combination of the given values."""

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from training.config import AnyConfig, ConfigError, load_config, parse_config
from training.config_changes import Changes, as_word, read_changes

# The figure that the table of a grid is sorted by.
_SELECT_BY = "training.select_by"
_MOST_LINES = 20  # of mistakes
_MOST_BYTES = 120  # of a folder's name; file systems take 255


@dataclass(frozen=True, slots=True)
class Point:
    """One configuration of a grid, whose run has a folder of its own."""

    index: int  # from 0, in the order of the values
    changes: Changes  # to the configuration's file
    config: AnyConfig
    label: str  # for people: the options that differ between points
    run_dir: Path


@dataclass(frozen=True, slots=True)
class Grid:
    """The points of a grid, and the folder that their runs' folders lie in."""

    config_path: Path
    folder: Path
    options: Mapping[str, str]  # short names of the options that were set
    varied: Sequence[str]  # those of them that differ between points; all if none does
    points: Sequence[Point]

    def point(self, index: int) -> Point:
        """The point with this number. Raises ConfigError if there is none."""
        if index >= len(self.points):
            raise ConfigError(f"--only {index}: the runs are numbered 0 to {len(self.points) - 1}")
        return self.points[index]

    @property
    def select_by(self) -> str:
        """The figure of the validation text that decides which weights are kept."""
        training = getattr(self.points[0].config, "training", None)
        return str(getattr(training, "select_by", "loss"))


def open_grid(config_path: Path, words: Sequence[str], folder: Path | None = None) -> Grid:
    """The grid of some `KEY=VALUE,VALUE` words, with every configuration checked.

    The folder is `runs/NAME-sweep` unless given. Raises ConfigError, with a line for each mistake.
    """
    values = read_changes(words)
    if _SELECT_BY in values:
        raise ConfigError(
            f"--set {_SELECT_BY}: the table is sorted by it, so it must be the same for all runs"
        )
    names = _short_names(list(values))
    checked, mistakes = [], dict[str, None]()
    for combination in itertools.product(*values.values()):
        changes = dict(zip(values, combination, strict=True))
        try:
            checked.append((changes, load_config(config_path, changes)))
        except ConfigError as error:
            mistakes |= dict.fromkeys(str(error).splitlines())
    if mistakes:
        raise ConfigError("\n".join(_at_most(_MOST_LINES, [*mistakes])))
    folder = folder or Path("runs") / f"{checked[0][1].name}-sweep"
    varied = [key for key, found in values.items() if len(found) > 1] or list(values)
    points = []
    for index, (changes, config) in enumerate(checked):
        own = {key: as_word(names[key], value) for key, value in changes.items()}
        label = ", ".join(own[key] for key in varied)
        # Every option is in it: another value for one of them must not rename existing runs.
        run_dir = folder / _folder_name(",".join(own.values()))
        points.append(Point(index, changes, config, label, run_dir))
    _refuse_twins(points)
    return Grid(config_path, folder, names, varied, points)


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """Each option with the shortest end of its name that no other option has."""
    return {key: _shortest(key, [other for other in keys if other != key]) for key in keys}


def _shortest(key: str, others: Sequence[str]) -> str:
    parts = key.split(".")
    ends = [".".join(parts[i:]) for i in reversed(range(len(parts)))]
    free = (end for end in ends if not any(f".{other}".endswith(f".{end}") for other in others))
    return next(free, key)


def _folder_name(words: str) -> str:
    """The words without quotes; where characters are lost, a digest keeps the name unique."""
    name = re.sub(r'"([A-Za-z][\w.-]*)"', r"\1", words)
    safe = re.sub(r"[^\w=,.+-]", "_", name, flags=re.ASCII)[:_MOST_BYTES]
    digest = hashlib.sha256(words.encode()).hexdigest()[:8]
    return safe if safe == name else f"{safe}-{digest}"


def _refuse_twins(points: Sequence[Point]) -> None:
    first: dict[str, Point] = {}
    for point in points:
        twin = first.setdefault(point.config.model_dump_json(), point)
        if twin is not point:
            raise ConfigError(f"--set: {twin.label} and {point.label} are the same configuration")


def _at_most(count: int, lines: Sequence[str]) -> Iterator[str]:
    yield from lines[:count]
    if len(lines) > count:
        yield f"and {len(lines) - count} more"


def same_run(config: AnyConfig, other: Mapping[str, Any]) -> bool:
    """Whether a configuration equals one kept as JSON, apart from the number of threads."""
    try:
        # Parsed, so that an option newer than the run has its default in both.
        kept = parse_config(dict(other)).model_dump(mode="json")
    except ValidationError:
        return False
    documents = [config.model_dump(mode="json"), kept]
    for document in documents:
        document.get("training", {}).pop("threads", None)
    return documents[0] == documents[1]
