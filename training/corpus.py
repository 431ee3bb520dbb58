"""Text files to a memory-mapped array of ids, in constant memory.

Three passes stream the files: one counts characters and documents, one counts the training
split's characters for the vocabulary, one writes the ids. Every document is stored as
`bos, characters, eos`; a split is a range of documents.
"""

import codecs
import glob
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from service.bundle import (
    BOS_ID,
    EOS_ID,
    SPECIAL_TOKENS,
    Normalization,
    Vocabulary,
    normalize,
)
from training.config import ConfigError, DataConfig

SPLITS = ("train", "valid", "test")
_RECORD_FILE = "corpus.json"
_READ_BYTES = 1 << 20
# Without ' . : ^ and `: whether a sigma is a final one is decided by what stands beyond those.
_ASCII_PAIR = re.compile(r"[!-&(-\-/-9;-\]_a-~]{2}")


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


@dataclass(frozen=True, slots=True)
class Corpus:
    """A prepared corpus: the vocabulary and the three splits."""

    vocab: Vocabulary
    sha256: str  # of the input file, or over those of several, in order
    train: Split
    valid: Split
    test: Split

    def split(self, name: str) -> Split:
        """The split called `train`, `valid` or `test`."""
        return {"train": self.train, "valid": self.valid, "test": self.test}[name]


def input_files(patterns: Sequence[str], base: Path, option: str = "data.files") -> list[Path]:
    """The files that an option names, globs expanded and sorted. Raises ConfigError for none."""
    files: dict[Path, None] = {}  # in order, each once: a second copy would leak between splits
    for pattern in patterns:
        # Not base.glob: absolute patterns too. Not base / pattern: a folder's [name] is no pattern.
        found = sorted(base / x for x in glob.glob(pattern, root_dir=base, recursive=True))  # noqa: PTH207
        if not found:
            raise ConfigError(f"{option}: nothing matches {pattern!r} beside the configuration")
        files |= dict.fromkeys(path for path in found if path.is_file())
    return list(files)


def prepare(
    config: DataConfig, base: Path, folder: Path, known_tokens: Sequence[str] = ()
) -> Corpus:
    """Write the corpus into `folder`, or reuse what is there if inputs and options are the same.

    `known_tokens` keep their ids, and the text's other characters follow.
    """
    files = input_files(config.files, base)
    options = config.model_dump(include={"documents", "normalization", "min_count"})
    options |= config.model_dump(include={"valid_fraction", "test_fraction"})
    key = {"format": 2, "sha256": digest_of(files), **options}
    if known_tokens:
        key["known_tokens"] = list(known_tokens)
    if not _is_prepared(folder, key):
        record = folder / _RECORD_FILE
        folder.mkdir(parents=True, exist_ok=True)
        record.unlink(missing_ok=True)
        tokens = _write(config, files, folder, known_tokens)
        document = {"key": key, "tokens": tokens, "checksums": _checksums(folder)}
        # Whole or not at all: a crash leaves a corpus that is prepared anew.
        scratch = record.with_suffix(".writing")
        scratch.write_text(json.dumps(document))
        scratch.replace(record)
    return load(folder)


def _is_prepared(folder: Path, key: dict[str, Any]) -> bool:
    """Whether the folder holds, undamaged, what these inputs and options give."""
    record = folder / _RECORD_FILE
    if not record.exists():
        return False
    document = json.loads(record.read_text())
    return bool(document["key"] == key and document["checksums"] == _checksums(folder))


def input_digest(config: DataConfig, base: Path) -> str:
    """What `Corpus.sha256` is for the files as they are now. Raises ConfigError for none."""
    return digest_of(input_files(config.files, base))


def load(folder: Path) -> Corpus:
    """Open a prepared corpus; the text that it comes from is not needed.

    Raises ConfigError where there is none, or where its files are not those that were written.
    """
    path = folder / _RECORD_FILE
    try:
        record = json.loads(path.read_text())
        whole = record["checksums"] == _checksums(folder)
    except FileNotFoundError as error:
        raise ConfigError(f"{error.filename}: not there; the run's folder is not whole") from error
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{path}: not a prepared corpus; train the run anew") from error
    if not whole:
        raise ConfigError(f"{folder}: damaged: its files are not those that were written")
    splits = {}
    for name in SPLITS:
        starts = np.memmap(folder / f"{name}.starts", dtype=np.int64, mode="r")
        path = folder / f"{name}.ids"
        # An empty file cannot be mapped.
        empty = path.stat().st_size == 0
        ids = np.empty(0, np.uint16) if empty else np.memmap(path, dtype=np.uint16, mode="r")
        splits[name] = Split(ids, starts)
    return Corpus(Vocabulary(record["tokens"]), record["key"]["sha256"], **splits)


def _checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of the files that hold the splits."""
    names = [f"{split}.{part}" for split in SPLITS for part in ("ids", "starts")]
    return {name: digest_of([folder / name]) for name in names}


def stream_text(path: Path, rules: Normalization) -> Iterator[str]:
    """Normalized pieces of a UTF-8 file. Raises ConfigError for a file that is not UTF-8.

    Pieces are cut before white space, which neither composes with what stands before it nor
    changes how it is lower-cased, so that the pieces together are the whole text's normal form.
    Text without any is cut between two ASCII characters that lower-casing does not look past,
    which are as safe; only a text with neither is held whole.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    rest = ""
    with path.open("rb") as stream:
        while block := stream.read(_READ_BYTES):
            try:
                rest += decoder.decode(block)
            except UnicodeDecodeError as error:
                raise ConfigError(f"{path}: not UTF-8: {error.reason}") from error
            cut = _safe_cut(rest)
            if cut > 0:
                yield normalize(rest[:cut], rules)
                rest = rest[cut:]
    try:
        rest += decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8: {error.reason}") from error
    if rest:
        yield normalize(rest, rules)


def _safe_cut(text: str) -> int:
    """Where the text may be cut and still normalize, part by part, as a whole; 0 for nowhere."""
    cut = max(text.rfind(" "), text.rfind("\n"))
    if cut > 0:
        # CR LF must stay in one piece.
        return cut - 1 if text[cut - 1] == "\r" else cut
    between = _ASCII_PAIR.search(text, max(0, len(text) - _READ_BYTES))
    return between.start() + 1 if between else 0


def _documents(config: DataConfig, files: list[Path]) -> Iterator[tuple[str, bool]]:
    """(text, ends) pieces: `ends` is true on the last piece of a document."""
    for path in files:
        if config.documents == "file":
            for piece in stream_text(path, config.normalization):
                yield piece, False
            yield "", True
            continue
        line_open = False
        for piece in stream_text(path, config.normalization):
            *whole, last = piece.split("\n")
            for line in whole:
                # Blank lines separate, they are not texts.
                if line or line_open:
                    yield line, True
                line_open = False
            if last:
                yield last, False
                line_open = True
        if line_open:
            yield "", True


def _write(
    config: DataConfig, files: list[Path], folder: Path, known_tokens: Sequence[str]
) -> list[str]:
    """Write every split's ids and document offsets; returns the vocabulary's tokens."""
    total = sum(len(piece) for piece, _ in _documents(config, files))
    if total == 0:
        raise ConfigError("data.files: there is no text in them")
    ends = _split_ends(config, total)
    vocab = _vocabulary(config, files, ends)
    if known_tokens:
        vocab = Vocabulary([*known_tokens, *(x for x in vocab.tokens if x not in known_tokens)])
    with ExitStack() as stack:
        ids = [stack.enter_context((folder / f"{name}.ids").open("wb")) for name in SPLITS]
        starts = [stack.enter_context((folder / f"{name}.starts").open("wb")) for name in SPLITS]
        document_open = False
        for split, text, ends_here in _assign(config, files, ends):
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


def _vocabulary(config: DataConfig, files: list[Path], ends: tuple[int, int]) -> Vocabulary:
    """The training split's characters, but the rare ones."""
    counts: Counter[str] = Counter()
    for split, text, _ in _assign(config, files, ends):
        if split == 0:
            counts.update(text)
    vocab = Vocabulary.of_characters(c for c, n in counts.items() if n >= config.min_count)
    if len(vocab) == len(SPECIAL_TOKENS):
        raise ConfigError("data.min_count: no character of the training split is that frequent")
    return vocab


def _split_ends(config: DataConfig, total: int) -> tuple[int, int]:
    """Characters before the end of the training split, and before the end of the validation."""
    train = 1.0 - config.valid_fraction - config.test_fraction
    # Rounded first: 1 - 0.1 is 0.9, and 0.9 of a million characters is not 899,999.
    train_end = int(round(train, 9) * total)
    if config.test_fraction == 0.0:
        return train_end, total
    return train_end, int(round(1.0 - config.test_fraction, 9) * total)


def _assign(
    config: DataConfig, files: list[Path], ends: tuple[int, int]
) -> Iterator[tuple[int, str, bool]]:
    """(split, text, ends) pieces in order.

    A file is cut where the split ends, and each part is a document of its own; a line belongs to
    the split in which it starts.
    """
    position = 0  # characters before this piece
    split = 0
    fresh = True  # at the start of a document
    for text, ends_here in _documents(config, files):
        if config.documents == "line":
            if fresh:
                split = _split_at(position, ends)
            yield split, text, ends_here
            fresh = ends_here
            position += len(text)
        else:
            rest = text
            while split < 2 and position + len(rest) > ends[split]:
                cut = ends[split] - position
                # An empty part is not a document.
                if cut or not fresh:
                    yield split, rest[:cut], True
                    fresh = True
                rest, position = rest[cut:], ends[split]
                split += 1
            if rest or not fresh:
                yield split, rest, ends_here
                fresh = ends_here
            position += len(rest)


def _split_at(position: int, ends: tuple[int, int]) -> int:
    return 0 if position < ends[0] else 1 if position < ends[1] else 2


def digest_of(files: Sequence[Path]) -> str:
    """SHA-256 of a file; of several, over theirs, since where one ends matters too."""
    digests = []
    for path in files:
        with path.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256"))
    if len(digests) == 1:
        return digests[0].hexdigest()
    return hashlib.sha256(b"".join(digest.digest() for digest in digests)).hexdigest()
