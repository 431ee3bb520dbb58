"""Files of pairs to ids: filtered and counted, split by source, tokenized on both sides."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from service.bundle.text import is_blank, normalize
from service.bundle.tokenization import Tokenizer
from training.config import EncoderDecoderDataConfig
from training.data.faults import Faults, two_columns
from training.data.splits import dealt, named_files, too_little
from training.data.tokenizers import grown, learn_tokenizer
from training.errors import ConfigError
from training.text_files import digest_of, input_files, read_lines

ALIGNED = " || "  # between the names of two aligned files

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
    for name in ("train", "valid"):
        if not splits[name]:
            raise ConfigError(too_little(config, counts, name, "pair"))
    source, target = _tokenizers(config, splits["train"])
    if known:
        shared = source is target
        source = grown(known[0], source)
        target = source if shared else grown(known[1], target)
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
    return digest_of(named_files(config, lambda pattern, option: _files(pattern, base, option)))


class _Reader:
    """Reads files into normalized pairs by split, and counts what it drops."""

    def __init__(self, config: EncoderDecoderDataConfig, base: Path) -> None:
        self._config = config
        self._base = base
        self.files: list[Path] = []
        self.counts: Counter[str] = Counter()

    def splits(self) -> dict[str, list[Pair]]:
        """Pairs by split; no source is in two splits."""
        return dealt(self._config, self._read, self.counts)

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
    faults = Faults(
        path,
        counts,
        "a line is source, tab, target (two aligned files are written "
        f'"sources.txt{ALIGNED}targets.txt")',
    )
    return ((source, target) for _, source, target in two_columns(path, counts, faults))


def _aligned(sources: Path, targets: Path) -> Iterator[Pair]:
    left, right = list(read_lines(sources)), list(read_lines(targets))
    if len(left) != len(right):
        raise ConfigError(
            f"{sources} has {len(left)} lines and {targets} has {len(right)}; they must be aligned"
        )
    return zip(left, right, strict=True)


def _tokenizers(
    config: EncoderDecoderDataConfig, train: Sequence[Pair]
) -> tuple[Tokenizer, Tokenizer]:
    sources, targets = list(dict.fromkeys(x for x, _ in train)), [x for _, x in train]
    if config.share_vocab:
        shared = learn_tokenizer(config.source, [*sources, *targets])
        return shared, shared
    return learn_tokenizer(config.source, sources), learn_tokenizer(config.target, targets)


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
