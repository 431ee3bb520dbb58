"""Files to documents, and documents to splits, in constant memory.

When splitting by document, a seeded hash of a line's text assigns it to a split, so that equal
lines are always in the same split. A file that is one document is cut into its training, validation
and test part, in this order. When splitting by position, all files are cut as if they were one
text.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from service.bundle.text import Normalization, last_cut, normalize
from training.config import LanguageModelDataConfig
from training.data.splits import SPLITS, TEST, TRAIN, VALID, split_of
from training.text_files import input_files, text_blocks

# `files` are split; the other files are used whole.
Role: TypeAlias = Literal["files", "train_files", "valid_files", "test_files"]
ROLES: tuple[Role, ...] = ("files", "train_files", "valid_files", "test_files")
# Characters before the end of the training split, and before the end of the validation split.
Ends: TypeAlias = tuple[int, int]

# A line is identified by its beginning, so that memory is bounded however long the line is.
_KEY_CHARS = 4096
# Characters. Among several files, one with a smaller validation or test part is not cut.
_LEAST_PART = 64


@dataclass(frozen=True, slots=True)
class Source:
    """A file of the configuration."""

    path: Path
    role: Role


def sources(config: LanguageModelDataConfig, base: Path) -> list[Source]:
    """The files, each with one role: a test file is not used for validation or training as well."""
    found: dict[Path, Source] = {}
    for role in ROLES:
        for path in input_files(getattr(config, role), base, f"data.{role}"):
            found.pop(path.resolve(), None)
            found[path.resolve()] = Source(path, role)
    return list(found.values())


class Documents:
    """The documents of a configuration's files, scanned once, then read by split."""

    def __init__(self, config: LanguageModelDataConfig, files: Sequence[Source]) -> None:
        """Read all files once, to count their text and to find what is held out of training."""
        self._config = config
        self._files = files
        self._rules = config.normalization
        self._whole_lists = any(source.role != "files" for source in files)
        self._held_out: tuple[set[bytes], set[bytes]] = set(), set()  # keys of VALID, of TEST
        self._ends: dict[Path, Ends] = {}  # of each file that is a document
        self._line_ends: Ends = 0, 0  # by position, of all lines
        self._scanned: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self.chars = 0
        if config.documents == "line":
            self._scan_lines()
        else:
            self._scan_files()

    @property
    def counts(self) -> dict[str, int]:
        """What was read and dropped, to be shown."""
        return dict(self._scanned + self._dropped)

    def pieces(self) -> Iterator[tuple[int, str, bool]]:
        """(split, text, ends) in order; `ends` is true for the last piece of a document."""
        if self._config.documents == "line":
            return self._line_pieces()
        return self._file_pieces()

    # --- lines --------------------------------------------------------------------------------

    def _scan_lines(self) -> None:
        total = 0
        for source in self._files:
            self._scanned["files"] += 1
            for key, text, ends in self._lines(source.path, self._scanned):
                self.chars += len(text)
                total += len(text) if source.role == "files" else 0
                self._scanned["lines"] += ends
                if self._whole_lists and ends and self._config.split_by == "document":
                    self._hold_out(self._split_of_line(source.role, key, 0), key)
        self._line_ends = split_ends(self._config, total)
        if self._whole_lists and self._config.split_by == "position":
            for _, key, split, _, ends in self._placed_lines():
                if ends:
                    self._hold_out(split, key)

    def _hold_out(self, split: int, key: bytes) -> None:
        if split != TRAIN:
            self._held_out[split - 1].add(key)

    def _line_pieces(self) -> Iterator[tuple[int, str, bool]]:
        dropped: Counter[str] = Counter()
        for text, key, split, _, ends in self._placed_lines():
            if any(key in keys for keys in self._held_out[split:]):
                dropped[f"dropped: held out elsewhere, from {SPLITS[split]}"] += ends
            else:
                yield split, text, ends
        self._dropped = dropped

    def _placed_lines(self) -> Iterator[tuple[str, bytes, int, Role, bool]]:
        """(text, key, split, role, ends) pieces."""
        position = 0  # characters of `files` before this piece
        split = TRAIN
        fresh = True  # at the start of a line
        for source in self._files:
            for key, text, ends in self._lines(source.path, Counter()):
                if fresh:
                    split = self._split_of_line(source.role, key, position)
                yield text, key, split, source.role, ends
                fresh = ends
                position += len(text) if source.role == "files" else 0

    def _split_of_line(self, role: Role, key: bytes, position: int) -> int:
        if role != "files":
            return ROLES.index(role) - 1
        if self._config.split_by == "document":
            return self._split_by_hash(key)
        # A line belongs to the split that it starts in.
        return sum(position >= end for end in self._line_ends)

    def _lines(self, path: Path, counts: Counter[str]) -> Iterator[tuple[bytes, str, bool]]:
        """(key, text, ends) pieces of the lines that are not blank; equal lines have equal keys."""
        strip = self._config.strip_lines
        key = b""
        head = ""  # of a line that has no key yet
        held = ""  # blanks that may be at the end of the line
        bare = False  # whether the line starts without a blank
        for text, ends in _line_pieces(path, self._rules):
            if not key:
                head += text
                begun = head.lstrip()
                if not ends and len(begun) < _KEY_CHARS:
                    continue
                if not begun:
                    counts["dropped: blank"] += 1
                    head = ""
                    continue
                key = self._key(begun[:_KEY_CHARS].rstrip())
                bare = len(begun) == len(head)
                text, head = begun if strip else head, ""  # noqa: PLW2901
            whole = held + text
            kept = whole.rstrip()
            held = whole[len(kept) :]
            if ends:
                counts["with blanks at an end"] += not bare or bool(held)
            yield key, kept if strip else text, ends
            if ends:
                key, held = b"", ""
            elif not strip:
                held = held[-1:]

    def _split_by_hash(self, key: bytes) -> int:
        config = self._config
        return split_of(
            key, valid_fraction=config.valid_fraction, test_fraction=config.test_fraction
        )

    def _key(self, text: str) -> bytes:
        seed = self._config.split_seed.to_bytes(8, "little")
        return hashlib.blake2b(text.encode(), digest_size=8, key=seed).digest()

    # --- files --------------------------------------------------------------------------------

    def _scan_files(self) -> None:
        totals: dict[Path, int] = {}
        keys: dict[Path, bytes] = {}
        for source in self._files:
            total, digest = 0, hashlib.blake2b(digest_size=8, key=self._key(""))
            for text in stream_text(source.path, self._rules):
                total += len(text)
                digest.update(text.encode())
            totals[source.path], keys[source.path] = total, digest.digest()
            self._scanned["files"] += 1
            self._scanned["dropped: empty"] += total == 0
        self.chars = sum(totals.values())
        split_files = [source.path for source in self._files if source.role == "files"]
        ends = split_ends(self._config, sum(totals[path] for path in split_files))
        position = 0
        for source in self._files:
            path, total = source.path, totals[source.path]
            if source.role != "files":
                self._ends[path] = _all_in(ROLES.index(source.role) - 1, total)
            elif self._config.split_by == "position":
                self._ends[path] = (
                    _within(ends[0], position, total),
                    _within(ends[1], position, total),
                )
                position += total
            elif len(split_files) > 1 and self._is_short(total):
                self._ends[path] = _all_in(self._split_by_hash(keys[path]), total)
                self._scanned["short: not cut"] += total > 0
            else:
                self._ends[path] = split_ends(self._config, total)
        self._drop_held_out(totals, keys)

    def _drop_held_out(self, totals: dict[Path, int], keys: dict[Path, bytes]) -> None:
        """Drop files that have a copy among the files that are held out whole."""
        if not self._whole_lists:
            return
        split = {
            path: sum(end == 0 for end in ends)
            for path, ends in self._ends.items()
            if ends in [_all_in(x, totals[path]) for x in range(3)]
        }
        for path in list(self._ends):
            later = [x for x in split if x != path and keys[x] == keys[path]]
            if any(split[x] > split.get(path, TRAIN) for x in later):
                del self._ends[path]
                self._scanned["dropped: held out elsewhere"] += 1

    def _is_short(self, total: int) -> bool:
        wanted = [x for x in (self._config.valid_fraction, self._config.test_fraction) if x > 0]
        return bool(wanted) and min(wanted) * total < _LEAST_PART

    def _file_pieces(self) -> Iterator[tuple[int, str, bool]]:
        """Cut each file where a split ends; each part is a document of its own."""
        for source in self._files:
            if source.path not in self._ends:
                continue
            ends = self._ends[source.path]
            position = 0
            split = TRAIN
            fresh = True  # at the start of a document
            for piece in stream_text(source.path, self._rules):
                rest = piece
                while split < TEST and position + len(rest) > ends[split]:
                    cut = ends[split] - position
                    # An empty part is not a document.
                    if cut or not fresh:
                        yield split, rest[:cut], True
                        fresh = True
                    rest, position = rest[cut:], ends[split]
                    split += 1
                if rest:
                    yield split, rest, False
                    fresh = False
                position += len(rest)
            if not fresh:
                yield split, "", True


def split_ends(config: LanguageModelDataConfig, total: int) -> Ends:
    """Where the splits end in a text of `total` characters."""
    train = 1.0 - config.valid_fraction - config.test_fraction
    # Rounded first: 1 - 0.1 is 0.9, and 0.9 of a million characters is not 899,999.
    train_end = int(round(train, 9) * total)
    if config.test_fraction == 0.0:
        return train_end, total
    return train_end, int(round(1.0 - config.test_fraction, 9) * total)


def _all_in(split: int, total: int) -> Ends:
    return (total, total) if split == TRAIN else (0, total) if split == VALID else (0, 0)


def _within(end: int, start: int, total: int) -> int:
    return min(max(end - start, 0), total)


def stream_text(path: Path, rules: Normalization) -> Iterator[str]:
    """Normalized pieces of a file. Raises ConfigError for a file that is not text.

    The joined pieces are the normal form of the whole text. Only a text that cannot be cut is held
    in memory whole.
    """
    rest = ""
    for block in text_blocks(path):
        rest += block
        cut = last_cut(rest, rules)
        if cut > 0:
            yield normalize(rest[:cut], rules)
            rest = rest[cut:]
    if rest:
        yield normalize(rest, rules)


def _line_pieces(path: Path, rules: Normalization) -> Iterator[tuple[str, bool]]:
    """(text, ends) pieces of every line, blank ones too."""
    line_open = False
    for piece in stream_text(path, rules):
        *whole, last = piece.split("\n")
        for line in whole:
            yield line, True
            line_open = False
        if last:
            yield last, False
            line_open = True
    if line_open:
        yield "", True
