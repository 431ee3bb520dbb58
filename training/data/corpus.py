"""Text files to a memory-mapped array of ids, in constant memory.

Three passes stream the files: one counts characters and documents, one counts the training
split's characters for the vocabulary, one writes the ids. Every document is stored as
`bos, characters, eos`; a split is a range of documents.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from service.bundle.text import BOS_ID, EOS_ID, SPECIAL_TOKENS, Vocabulary
from training.config import LanguageModelDataConfig
from training.data.documents import Documents, sources
from training.data.splits import SPLITS, TRAIN
from training.errors import ConfigError
from training.text_files import digest_of

_RECORD_FILE = "corpus.json"
_SPLIT_FILES = tuple(f"{split}.{part}" for split in SPLITS for part in ("ids", "starts"))
# Fewer tokens say too little about a temperature or a weight.
LEAST_FITTED = 500
LEAST_HALVED = 2 * LEAST_FITTED  # of a validation split that figures are reported on, too
# With fewer documents, cutting between two would give very unequal parts.
_FEW_DOCUMENTS = 30
# Options that the ids depend on.
_OPTIONS = {
    "documents",
    "normalization",
    "min_count",
    "strip_lines",
    "split_by",
    "split_seed",
    "valid_fraction",
    "test_fraction",
}


@dataclass(frozen=True, slots=True)
class Split:
    """The documents of one split, back to back."""

    ids: npt.NDArray[np.uint16]  # memory-mapped
    starts: npt.NDArray[np.int64]  # [documents + 1] offsets into ids

    @property
    def documents(self) -> int:
        """Number of documents."""
        return len(self.starts) - 1

    @property
    def tokens(self) -> int:
        """Predicted tokens: every character, and eos a document."""
        return len(self.ids) - self.documents

    @property
    def chars(self) -> int:
        """Characters, bos and eos not counted."""
        return len(self.ids) - 2 * self.documents

    def first(self, tokens: int) -> "Split":
        """About the first `tokens`; a document that reaches beyond them ends there."""
        return self if len(self.ids) <= tokens else _cut(self, tokens)[0]

    def halves(self) -> tuple["Split", "Split"]:
        """The two halves, by tokens. Few documents are cut anywhere, many only between two."""
        return _cut(self, len(self.ids) // 2)

    def joined(self, other: "Split") -> "Split":
        """The documents of both."""
        starts = np.concatenate([self.starts, self.starts[-1] + other.starts[1:]])
        return Split(np.concatenate([self.ids, other.ids]), starts)


@dataclass(frozen=True, slots=True)
class Corpus:
    """A prepared corpus: the vocabulary and the three splits."""

    vocab: Vocabulary
    sha256: str  # of the input file, or over those of several, in order
    train: Split
    valid: Split
    test: Split
    counts: dict[str, int] = field(
        default_factory=dict
    )  # counts of what was read and dropped, for people

    def split(self, name: str) -> Split:
        """The split called `train`, `valid` or `test`."""
        return {"train": self.train, "valid": self.valid, "test": self.test}[name]

    @property
    def held_out_name(self) -> Literal["valid", "test"]:
        """The split that figures are reported on: test if there is one, else validation."""
        return "test" if self.test.chars else "valid"

    @property
    def held_out(self) -> Split:
        """The text that figures are reported on; without a test split, what `fitting` leaves."""
        if self.test.chars:
            return self.test
        return self.valid if self.valid.tokens < LEAST_HALVED else self.valid.halves()[1]

    @property
    def fitting(self) -> Split | None:
        """The text that an export fits temperatures and weights on; None where there is too little.

        The validation split or, without a test split, its first half.
        """
        if self.test.chars:
            return self.valid if self.valid.tokens >= LEAST_FITTED else None
        return None if self.valid.tokens < LEAST_HALVED else self.valid.halves()[0]


def _cut(split: Split, tokens: int) -> tuple[Split, Split]:
    """The split up to about so many tokens, and the rest."""
    at = int(np.searchsorted(split.starts, tokens))  # the first document that starts there or later
    begin = int(split.starts[at - 1])
    if split.documents >= _FEW_DOCUMENTS and at - 1 > 0:
        return _documents(split, 0, at - 1), _documents(split, at - 1, split.documents)
    place = min(max(tokens, begin + 1), int(split.starts[at]) - 1)
    first = np.append(split.ids[:place], np.uint16(EOS_ID))
    rest = np.concatenate([[np.uint16(BOS_ID)], split.ids[place:]])
    offset = place - 1  # of what is left out, less the bos that is put before the rest
    return (
        Split(first, np.append(split.starts[:at], len(first))),
        Split(rest, np.concatenate([[0], split.starts[at:] - offset])),
    )


def _documents(split: Split, first: int, last: int) -> Split:
    starts = split.starts[first : last + 1]
    return Split(split.ids[starts[0] : starts[-1]], starts - starts[0])


def prepare(
    config: LanguageModelDataConfig, base: Path, folder: Path, known_tokens: Sequence[str] = ()
) -> Corpus:
    """Write the corpus into `folder`, or reuse it if inputs and options are the same.

    `known_tokens` keep their ids; other characters of the text follow them.
    """
    files = sources(config, base)
    options = config.model_dump(include=_OPTIONS)
    roles = [source.role for source in files]
    sha256 = digest_of([source.path for source in files])
    key = {"format": 3, "sha256": sha256, "roles": roles, **options}
    if known_tokens:
        key["known_tokens"] = list(known_tokens)
    if not _is_prepared(folder, key):
        record = folder / _RECORD_FILE
        folder.mkdir(parents=True, exist_ok=True)
        record.unlink(missing_ok=True)
        documents = Documents(config, files)
        if documents.chars == 0:
            raise ConfigError(_no_text([source.path for source in files]))
        tokens = _write(config, documents, folder, known_tokens)
        document = {
            "key": key,
            "tokens": tokens,
            "counts": documents.counts,
            "checksums": _checksums(folder),
        }
        # Written whole or not at all: after a crash the corpus is prepared again.
        scratch = record.with_suffix(".writing")
        scratch.write_text(json.dumps(document))
        scratch.replace(record)
    return _opened(folder)


def _is_prepared(folder: Path, key: dict[str, Any]) -> bool:
    """Whether the folder holds the corpus of these inputs and options, undamaged."""
    record = folder / _RECORD_FILE
    if not record.exists() or _missing(folder):
        return False
    document = json.loads(record.read_text())
    return bool(document["key"] == key and document["checksums"] == _checksums(folder))


def input_digest(config: LanguageModelDataConfig, base: Path) -> str:
    """`Corpus.sha256` for the files as they are now. Raises ConfigError if there are none."""
    return digest_of([source.path for source in sources(config, base)])


def load(folder: Path) -> Corpus:
    """Open a prepared corpus, without the text that it was made from.

    Raises ConfigError where there is none, or where its files have changed.
    """
    path = folder / _RECORD_FILE
    if missing := _missing(folder):
        raise ConfigError(f"{missing[0]}: missing; the run's folder is incomplete")
    try:
        record = json.loads(path.read_text())
        whole = record["checksums"] == _checksums(folder)
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{path}: not a prepared corpus; train the run anew") from error
    if not whole:
        raise ConfigError(f"{folder}: damaged: its files have changed since they were written")
    return _opened(folder)


def _opened(folder: Path) -> Corpus:
    """Open a corpus that is known to be complete."""
    record = json.loads((folder / _RECORD_FILE).read_text())
    splits = {}
    for name in SPLITS:
        starts = np.memmap(folder / f"{name}.starts", dtype=np.int64, mode="r")
        path = folder / f"{name}.ids"
        # An empty file cannot be mapped.
        empty = path.stat().st_size == 0
        ids = np.empty(0, np.uint16) if empty else np.memmap(path, dtype=np.uint16, mode="r")
        splits[name] = Split(ids, starts)
    vocab = Vocabulary(record["tokens"])
    return Corpus(vocab, record["key"]["sha256"], **splits, counts=record["counts"])


def _checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of the files that hold the splits."""
    return {name: digest_of([folder / name]) for name in _SPLIT_FILES}


def _missing(folder: Path) -> list[Path]:
    """The files of a prepared corpus that this folder lacks."""
    paths = [folder / name for name in (_RECORD_FILE, *_SPLIT_FILES)]
    return [path for path in paths if not path.exists()]


def _write(
    config: LanguageModelDataConfig, documents: Documents, folder: Path, known_tokens: Sequence[str]
) -> list[str]:
    """Write the ids and document offsets of every split. Returns the vocabulary's tokens."""
    vocab = _vocabulary(config, documents)
    if known_tokens:
        vocab = Vocabulary([*known_tokens, *(x for x in vocab.tokens if x not in known_tokens)])
    with ExitStack() as stack:
        ids = [stack.enter_context((folder / f"{name}.ids").open("wb")) for name in SPLITS]
        starts = [stack.enter_context((folder / f"{name}.starts").open("wb")) for name in SPLITS]
        document_open = False
        for split, text, ends_here in documents.pieces():
            piece = vocab.encode(text)
            if not document_open:
                starts[split].write(np.int64(ids[split].tell() // piece.itemsize).tobytes())
                ids[split].write(np.uint16(BOS_ID).tobytes())
            ids[split].write(piece.tobytes())
            if ends_here:
                ids[split].write(np.uint16(EOS_ID).tobytes())
            document_open = not ends_here
        for split_ids, split_starts in zip(ids, starts, strict=True):
            split_starts.write(np.int64(split_ids.tell() // 2).tobytes())
    return list(vocab.tokens)


def _vocabulary(config: LanguageModelDataConfig, documents: Documents) -> Vocabulary:
    """The characters of the training split, without the rare ones."""
    counts: Counter[str] = Counter()
    for split, text, _ in documents.pieces():
        if split == TRAIN:
            counts.update(text)
    if not counts:
        raise ConfigError(_too_little(config, documents.counts, "train"))
    vocab = Vocabulary.of_characters(c for c, n in counts.items() if n >= config.min_count)
    if len(vocab) == len(SPECIAL_TOKENS):
        raise ConfigError("data.min_count: no character of the training split is that frequent")
    return vocab


def check_held_out(config: LanguageModelDataConfig, corpus: Corpus) -> None:
    """Raise ConfigError if a required split has no text; the message says what is needed."""
    if corpus.valid.chars == 0:
        raise ConfigError(_too_little(config, corpus.counts, "valid"))
    # The fractions apply only to `files`.
    wanted = config.test_files or (config.files and config.test_fraction > 0)
    if corpus.test.chars == 0 and wanted:
        raise ConfigError(_too_little(config, corpus.counts, "test"))


def _no_text(files: list[Path]) -> str:
    return (
        f"data.files: there is no text in {_named(files)}: every line is blank; "
        "name files that hold the text to train on"
    )


def _named(files: list[Path]) -> str:
    names = ", ".join(str(path) for path in files[:3])
    return names + (f" and {len(files) - 3:,} more" if len(files) > 3 else "")


def _too_little(config: LanguageModelDataConfig, counts: dict[str, int], split: str) -> str:
    """Says what was found, what is needed and which options change it."""
    lines = config.documents == "line"
    what = "lines" if lines else "files"
    count = counts.get(what, 0)
    found = f"{count:,} {what if count != 1 else what[:-1]}"
    if dropped := counts.get(f"dropped: held out elsewhere, from {split}", 0):
        found += f", {dropped:,} of them left out of {split} since they are held out elsewhere"
    said = f"data: no text is left for the {split} split ({found}). "
    if split == "train":
        return said + (
            "Add text, lower data.valid_fraction and data.test_fraction, or name data.train_files"
        )
    option = f"data.{split}_fraction"
    fraction = getattr(config, f"{split}_fraction")
    if not config.files:
        return said + f"Name data.{split}_files, or data.files to split by the fractions"
    if fraction == 0.0:
        return said + f"Set {option} (0.1 is usual), or name data.{split}_files"
    if lines:
        # With this many lines, one split in twenty stays empty.
        least = math.ceil(math.log(0.05) / math.log1p(-fraction))
        return said + (
            f"With {option} = {fraction:g}, at least {least:,} different lines are needed: "
            f"add lines, set {option} higher, or name data.{split}_files"
        )
    return said + (
        f"{option} is {fraction:g}: add text, set {option} higher, name data.{split}_files, "
        'or set data.split_by = "position", which cuts all files as one text'
    )
