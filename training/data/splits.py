"""Assigns a text to a split by its hash, and keeps a text out of all splits but one."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from training.errors import ConfigError

SPLITS = ("train", "valid", "test")
TRAIN, VALID, TEST = range(3)

Row = TypeVar("Row", bound=tuple[str, Any])  # the text that decides, and what belongs to it


class SplitFiles(Protocol):
    """The options that name files: `files` are split; every other list is used whole."""

    @property
    def files(self) -> list[str]:
        """Split by the text of each row."""

    @property
    def train_files(self) -> list[str]:
        """Only for training."""

    @property
    def valid_files(self) -> list[str]:
        """Only for validation."""

    @property
    def test_files(self) -> list[str]:
        """Only for the test."""

    @property
    def extra_tests(self) -> dict[str, list[str]]:
        """Further test sets, by name."""

    @property
    def valid_fraction(self) -> float:
        """Of the texts in `files`."""

    @property
    def test_fraction(self) -> float:
        """The same for the test."""


def split_of(digest: bytes, *, valid_fraction: float, test_fraction: float) -> int:
    """TRAIN, VALID or TEST: 8 bytes of a digest decide, in proportion to the fractions."""
    place = int.from_bytes(digest) / 2**64
    if place < test_fraction:
        return TEST
    return VALID if place < test_fraction + valid_fraction else TRAIN


def whole_lists(config: SplitFiles) -> dict[str, list[str]]:
    """The lists that are used whole, by split. Raises ConfigError for an extra test so named."""
    lists = {"train": config.train_files, "valid": config.valid_files, "test": config.test_files}
    for name, patterns in config.extra_tests.items():
        if name in lists:
            raise ConfigError(f"data.extra_tests: {name!r} is the name of a split")
        lists[name] = patterns
    return lists


def option_of(name: str) -> str:
    """The option that names the files of a split, for errors."""
    return f"data.{name}_files" if name in SPLITS else f"data.extra_tests.{name}"


def named_files(config: SplitFiles, found: Callable[[str, str], Sequence[Path]]) -> list[Path]:
    """All files that the options name, in order: `found` of each pattern and its option."""
    lists = [("data.files", config.files)]
    lists += [(option_of(name), patterns) for name, patterns in whole_lists(config).items()]
    return [x for option, patterns in lists for pattern in patterns for x in found(pattern, option)]


def dealt(
    config: SplitFiles, read: Callable[[Sequence[str], str], list[Row]], counts: Counter[str]
) -> dict[str, list[Row]]:
    """Rows by split: no text is in two splits, and what is dropped for that is counted.

    `read` gives the rows of the files that an option names.
    """
    splits: dict[str, list[Row]] = {name: [] for name in SPLITS}
    for row in read(config.files, "data.files"):
        splits[_split_of(row[0], config)].append(row)
    for name, patterns in whole_lists(config).items():
        splits.setdefault(name, []).extend(read(patterns, option_of(name)))
    hold_out(splits, counts)
    return splits


def hold_out(splits: dict[str, list[Row]], counts: Counter[str]) -> None:
    """Drop texts that a later split has as well: the last test set wins."""
    taken: set[str] = set()
    for name in reversed(splits):
        kept = [row for row in splits[name] if row[0] not in taken]
        dropped = len(splits[name]) - len(kept)
        if dropped:
            counts[f"dropped: held out elsewhere, from {name}"] += dropped
        taken |= {row[0] for row in splits[name]}
        splits[name] = kept


def too_little(config: SplitFiles, counts: Mapping[str, int], name: str, rows: str) -> str:
    """The error where a split is empty: what was found, and which options change it."""
    purpose = {"train": "train on", "valid": "validate on"}[name]
    dropped = sum(count for reason, count in counts.items() if reason.startswith("dropped"))
    found = f"of {counts['read']:,} read ({dropped:,} dropped)"
    said = f"data: no {rows} is left to {purpose}, {found}. "
    if name == "train":
        return said + f"Add {rows}s, or lower data.valid_fraction and data.test_fraction"
    least = f" ({config.valid_fraction:g} now; 0.1 is usual)"
    return said + f"Add {rows}s, set data.valid_fraction higher{least}, or name data.valid_files"


def _split_of(text: str, config: SplitFiles) -> str:
    """The split of a row: by its text alone, so that other lines never change it."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    split = split_of(
        digest, valid_fraction=config.valid_fraction, test_fraction=config.test_fraction
    )
    return SPLITS[split]
