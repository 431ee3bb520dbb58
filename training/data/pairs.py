"""Files of pairs to ids: filtered and counted, split by source, tokenized on both sides."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from service.bundle.text import SPECIAL_TOKENS, is_blank, normalize
from service.bundle.tokenization import Characters, Subwords, Symbols, Tokenizer
from training.config import EncoderDecoderDataConfig, TextSideConfig
from training.data.splits import SPLITS, split_of
from training.errors import ConfigError
from training.text_files import digest_of, input_files, read_lines

ALIGNED = " || "  # between the names of two aligned files
_RARE = 0.05  # lines without a tab are dropped up to this share; above it, the file is rejected

Ids: TypeAlias = npt.NDArray[np.uint16]
Pair: TypeAlias = tuple[str, str]  # source, target; normalized


@dataclass(frozen=True, slots=True)
class PairSplit:
    """The pairs of one split, and every target of each source."""

    name: str
    pairs: Sequence[Pair]
    sources: Sequence[Ids]  # of each pair, without eos
    targets: Sequence[Ids]  # of each pair, without bos and eos
    references: dict[str, list[str]] = field(init=False)  # every target of a source, in order

    def __post_init__(self) -> None:
        references: dict[str, list[str]] = {}
        for source, target in self.pairs:
            references.setdefault(source, []).append(target)
        object.__setattr__(self, "references", references)

    def __len__(self) -> int:
        return len(self.pairs)


@dataclass(frozen=True, slots=True)
class PairCorpus:
    """Prepared pairs: both tokenizers and the splits."""

    source: Tokenizer
    target: Tokenizer
    sha256: str  # over the input files, in order
    train: PairSplit
    valid: PairSplit
    tests: Sequence[PairSplit]  # `test`, where there is one, and the extra tests
    counts: dict[str, int]  # pairs read, kept and dropped, for people
    # Draws the training pairs of an epoch anew; None: they are `train` in every epoch.
    drawn: Callable[[int], PairSplit] | None = None
    readable: Callable[[str], str] = str  # a source or a target for people

    @property
    def held_out(self) -> Sequence[PairSplit]:
        """The splits that figures are reported on."""
        return self.tests or [self.valid]

    def chosen(self, name: str | None) -> Sequence[PairSplit]:
        """The split of that name (`--split`), or all that are held out. Raises ConfigError."""
        if not name:
            return self.held_out
        known = {split.name: split for split in (self.train, self.valid, *self.tests)}
        if name not in known:
            raise ConfigError(f"--split: there are {', '.join(known)}")
        return [known[name]]


def prepare_pairs(
    config: EncoderDecoderDataConfig, base: Path, known: Sequence[Tokenizer] = ()
) -> PairCorpus:
    """Read, filter, split and tokenize. Raises ConfigError for files that cannot be used.

    The tokens of `known` tokenizers (source, target) keep their ids, and new ones follow; subwords
    stay as they are.
    """
    reader = _Reader(config, base)
    splits = reader.splits()
    counts = reader.counts
    for name, purpose in (("train", "train on"), ("valid", "validate on")):
        if not splits[name]:
            raise ConfigError(_too_little(config, counts, name, purpose))
    source, target = _tokenizers(config, splits["train"])
    if known:
        shared = source is target
        source = _grown(known[0], source)
        target = source if shared else _grown(known[1], target)
    encoder = _Encoder(config, source, target, counts)
    encoded = {name: encoder.encode(name, pairs) for name, pairs in splits.items()}
    for name, split in encoded.items():
        counts[name] = len(split)
    if not len(encoded["train"]) or not len(encoded["valid"]):
        raise ConfigError("data.max_source_tokens, data.max_target_tokens: no pair is that short")
    tests = [encoded[name] for name in splits if name not in ("train", "valid")]
    return PairCorpus(
        source,
        target,
        digest_of(reader.files),
        encoded["train"],
        encoded["valid"],
        [split for split in tests if len(split)],
        dict(counts),
    )


def halved(config: EncoderDecoderDataConfig, files: Sequence[Path]) -> EncoderDecoderDataConfig:
    """The same rules for other files, whose sources are dealt to `train` and `valid` by halves."""
    return config.model_copy(
        update={
            "files": [str(path.resolve()) for path in files],
            "train_files": [],
            "valid_files": [],
            "test_files": [],
            "extra_tests": {},
            "valid_fraction": 0.5,
            "test_fraction": 0.0,
        }
    )


def input_digest(config: EncoderDecoderDataConfig, base: Path) -> str:
    """`PairCorpus.sha256` for the files as they are now. Raises ConfigError if there are none."""
    lists = [
        (config.files, "data.files"),
        *((getattr(config, f"{name}_files"), f"data.{name}_files") for name in SPLITS),
        *((x, f"data.extra_tests.{name}") for name, x in config.extra_tests.items()),
    ]
    return digest_of(
        [
            path
            for patterns, option in lists
            for pattern in patterns
            for path in _files(pattern, base, option)
        ]
    )


def _too_little(
    config: EncoderDecoderDataConfig, counts: Mapping[str, int], name: str, purpose: str
) -> str:
    """The error message: what was found, and which options change it."""
    dropped = sum(count for reason, count in counts.items() if reason.startswith("dropped"))
    said = f"data: no pair is left to {purpose}, of {counts['read']:,} read ({dropped:,} dropped). "
    if name == "train":
        return said + "Add pairs, or lower data.valid_fraction and data.test_fraction"
    fraction = config.valid_fraction
    least = f" ({fraction:g} now; 0.1 is usual)"
    return said + f"Add pairs, set data.valid_fraction higher{least}, or name data.valid_files"


class _Reader:
    """Reads files into normalized pairs by split, and counts what it drops."""

    def __init__(self, config: EncoderDecoderDataConfig, base: Path) -> None:
        self._config = config
        self._base = base
        self.files: list[Path] = []
        self.counts: Counter[str] = Counter()

    def splits(self) -> dict[str, list[Pair]]:
        """Pairs by split; no source is in two splits."""
        config = self._config
        splits: dict[str, list[Pair]] = {name: [] for name in SPLITS}
        for pair in self._read(config.files, "data.files"):
            splits[_split_of(pair[0], config)].append(pair)
        for name in splits:
            splits[name] += self._read(getattr(config, f"{name}_files"), f"data.{name}_files")
        for name, patterns in config.extra_tests.items():
            if name in splits:
                raise ConfigError(f"data.extra_tests: {name!r} is the name of a split")
            splits[name] = self._read(patterns, f"data.extra_tests.{name}")
        _hold_out(splits, self.counts)
        return splits

    def _read(self, patterns: Sequence[str], option: str) -> list[Pair]:
        rules = self._config.source.normalization, self._config.target.normalization
        pairs: dict[Pair, None] = {}
        for pattern in patterns:
            found = _files(pattern, self._base, option)
            self.files += found
            for texts in self._texts(found, aligned=ALIGNED in pattern):
                self.counts["read"] += 1
                source, target = map(normalize, texts, rules)
                if is_blank(source) or is_blank(target):
                    self.counts["dropped: empty"] += 1
                elif (source, target) in pairs:
                    self.counts["dropped: repeated"] += 1
                else:
                    pairs[source, target] = None
        return list(pairs)

    def _texts(self, found: Sequence[Path], *, aligned: bool) -> Iterator[Pair]:
        if aligned:
            return _aligned(found[0], found[1])
        return (pair for path in found for pair in _tsv(path, self.counts))


def make_tokenizer(tokenization: str, tokens: Sequence[str], document: str | None) -> Tokenizer:
    """The tokenizer that a checkpoint or a bundle describes."""
    if tokenization == "bpe":
        if document is None:
            raise ValueError("bpe needs the tokenizer's document")
        return Subwords(document)
    return Characters(tokens) if tokenization == "character" else Symbols(tokens)


def _files(pattern: str, base: Path, option: str) -> list[Path]:
    if ALIGNED in pattern:
        names = pattern.split(ALIGNED)
        found = [path for name in names for path in input_files([name.strip()], base, option)]
        if len(found) != 2:
            raise ConfigError(f"{option}: {pattern!r} must name two files")
        return found
    return input_files([pattern], base, option)


def _tsv(path: Path, counts: Counter[str]) -> Iterator[Pair]:
    """The pairs of a file; counts lines without a tab. Raises ConfigError if there are many."""
    lines = without_tab = first = 0
    for number, line in enumerate(read_lines(path), start=1):
        if is_blank(line):
            counts["read"] += 1
            counts["dropped: empty"] += 1
            continue
        lines += 1
        source, tab, rest = line.partition("\t")
        target, more, _ = rest.partition("\t")
        if not tab:
            counts["read"] += 1
            counts["dropped: no tab"] += 1
            without_tab += 1
            first = first or number
            continue
        if more:
            counts["ignored: further columns"] += 1
        yield source, target
    if without_tab > _RARE * lines:
        raise ConfigError(
            f"{path}, line {first}: there is no tab, as in {without_tab:,} of {lines:,} lines; "
            "a line is source, tab, target (two aligned files are written "
            f'"sources.txt{ALIGNED}targets.txt")'
        )


def _aligned(sources: Path, targets: Path) -> Iterator[Pair]:
    left, right = list(read_lines(sources)), list(read_lines(targets))
    if len(left) != len(right):
        raise ConfigError(
            f"{sources} has {len(left)} lines and {targets} has {len(right)}; they must be aligned"
        )
    return zip(left, right, strict=True)


def _split_of(source: str, config: EncoderDecoderDataConfig) -> str:
    """The split of a pair: by its source alone, so that other lines never change it."""
    digest = hashlib.blake2b(source.encode(), digest_size=8).digest()
    split = split_of(
        digest, valid_fraction=config.valid_fraction, test_fraction=config.test_fraction
    )
    return SPLITS[split]


def _hold_out(splits: dict[str, list[Pair]], counts: Counter[str]) -> None:
    """Drop sources that a later split has as well: the last test set wins."""
    taken: set[str] = set()
    for name in reversed(splits):
        kept = [pair for pair in splits[name] if pair[0] not in taken]
        dropped = len(splits[name]) - len(kept)
        if dropped:
            counts[f"dropped: held out elsewhere, from {name}"] += dropped
        taken |= {source for source, _ in splits[name]}
        splits[name] = kept


def _tokenizers(
    config: EncoderDecoderDataConfig, train: Sequence[Pair]
) -> tuple[Tokenizer, Tokenizer]:
    sources, targets = [x for x, _ in train], [x for _, x in train]
    try:
        if config.share_vocab:
            shared = _learn(config.source, [*dict.fromkeys(sources), *targets])
            return shared, shared
        return _learn(config.source, list(dict.fromkeys(sources))), _learn(config.target, targets)
    except ValueError as error:
        raise ConfigError(f"data: {error}; a higher min_count leaves fewer") from error


def _grown(known: Tokenizer, own: Tokenizer) -> Tokenizer:
    """The known tokens, followed by the new ones."""
    if isinstance(own, Subwords):
        return known
    tokens = [*known.tokens, *(x for x in own.tokens if x not in known.tokens)]
    return Characters(tokens) if isinstance(own, Characters) else Symbols(tokens)


def _learn(config: TextSideConfig, texts: Iterable[str]) -> Tokenizer:
    if config.tokenization == "bpe":
        return Subwords.learn(texts, config.vocab_size, config.min_count)
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text if config.tokenization == "character" else text.split(" "))
    frequent = [token for token, count in counts.items() if token and count >= config.min_count]
    if not set(frequent) - set(SPECIAL_TOKENS):
        raise ConfigError("data: min_count leaves no token of the training split")
    if config.tokenization == "character":
        return Characters.of_characters(frequent)
    return Symbols.of_symbols(frequent)


class _Encoder:
    """Texts to ids; drops and counts pairs that are too long or too different in length."""

    def __init__(
        self,
        config: EncoderDecoderDataConfig,
        source: Tokenizer,
        target: Tokenizer,
        counts: Counter[str],
    ) -> None:
        self._config = config
        self._source = source
        self._target = target
        self._counts = counts

    def encode(self, name: str, pairs: Sequence[Pair]) -> PairSplit:
        """The pairs of one split."""
        kept, sources, targets = [], [], []
        for pair in pairs:
            source_ids, target_ids = self._source.encode(pair[0]), self._target.encode(pair[1])
            reason = _too_long(len(source_ids), len(target_ids), self._config)
            if reason:
                self._counts[f"dropped: {reason}, from {name}"] += 1
                continue
            kept.append(pair)
            sources.append(source_ids)
            targets.append(target_ids)
        return PairSplit(name, kept, sources, targets)


def _too_long(source: int, target: int, config: EncoderDecoderDataConfig) -> str | None:
    if source > config.max_source_tokens or target > config.max_target_tokens:
        return "too long"
    ratio = max(source, target) / max(1, min(source, target))
    if config.max_length_ratio is not None and ratio > config.max_length_ratio:
        return "lengths too different"
    return None
