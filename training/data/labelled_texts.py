"""From texts with the names of their labels to a corpus: split, cut, tokenized and counted."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np

from service.bundle.labeler import MAX_LABELS, Labels
from service.bundle.text import is_blank
from service.bundle.tokenization import Tokenizer
from training.config import LabelDataConfig
from training.data.labelled import LabelledCorpus, LabelledSplit
from training.data.splits import dealt, hold_out, named_files, too_little
from training.data.tokenizers import grown, learn_tokenizer
from training.errors import ConfigError
from training.text_files import digest_of

# A normalized text, and its labels' names: of the text, or one for each of its characters.
LabelledText: TypeAlias = tuple[str, tuple[str, ...]]
Splits: TypeAlias = dict[str, list[LabelledText]]


class Reader(Protocol):
    """Reads the files of one form."""

    def files(self, pattern: str, option: str) -> Sequence[Path]:
        """The files that an entry of an option names. Raises ConfigError if there are none."""

    def texts(self, path: Path, counts: Counter[str], /) -> Iterable[LabelledText]:
        """The texts of a file. Those that it leaves out, it counts as `read` and `dropped: …`.

        Raises ConfigError for a file that does not have this form.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """What differs between the kinds of labels."""

    labels: Callable[[Sequence[str]], Labels]  # of the names, in order; may raise ConfigError
    by_character: bool  # whether labels belong to characters, and are cut with them
    joined: bool = False  # several lines of one text are one text with the labels of all
    # Cuts a text into parts of at most so many tokens; None: what exceeds them is dropped.
    pieces: Callable[[LabelledText, int], list[LabelledText]] | None = None
    # Changes the texts once they are split and cut, such as those of rare labels.
    revise: Callable[[Splits, Counter[str]], Splits] | None = None


def labelled_corpus(
    config: LabelDataConfig,
    reader: Reader,
    rules: Rules,
    known: Sequence[Tokenizer] = (),
    known_labels: Sequence[str] = (),
) -> LabelledCorpus:
    """Read, split, cut and tokenize. Raises ConfigError for files that cannot be used.

    The tokens of `known` tokenizers (the text's) keep their ids, and so do `known_labels`; new ones
    follow. Subwords stay as they are.
    """
    if rules.by_character and config.text.tokenization != "character":
        raise ConfigError('data.text.tokenization: labels of characters need "character"')
    collected = _Collected(reader, joined=rules.joined)
    counts = collected.counts
    splits = dealt(config, collected.read, counts)
    _check_enough(config, splits, counts)
    tokenizer = learn_tokenizer(config.text, dict.fromkeys(text for text, _ in splits["train"]))
    if known:
        tokenizer = grown(known[0], tokenizer)
    splits = _Cut(tokenizer, config.max_tokens, rules).cut(splits, counts)
    if rules.revise is not None:
        splits = rules.revise(splits, counts)
    names = _names(splits, known_labels, counts)
    _check_enough(config, splits, counts)
    found = {
        name: encoded_split(name, texts, tokenizer, names, config.max_tokens)
        for name, texts in splits.items()
    }
    _count_ambiguous(splits, counts)
    counts.update({name: len(texts) for name, texts in splits.items()})
    return LabelledCorpus(
        tokenizer=tokenizer,
        labels=rules.labels(names),
        allowed=None,
        sha256=digest_of(collected.files),
        train=found["train"],
        valid=found["valid"],
        tests=[x for name, x in found.items() if name not in ("train", "valid") and len(x)],
        counts=dict(counts),
    )


def input_digest(config: LabelDataConfig, reader: Reader) -> str:
    """`LabelledCorpus.sha256` for the files as they are now. Raises ConfigError for none."""
    return digest_of(named_files(config, reader.files))


def encoded_split(
    name: str,
    texts: Sequence[LabelledText],
    tokenizer: Tokenizer,
    names: Sequence[str],
    max_tokens: int,
) -> LabelledSplit:
    """The texts as ids; `names` are the labels in the order of their ids."""
    ids = {label: i for i, label in enumerate(names)}
    return LabelledSplit(
        name,
        [text for text, _ in texts],
        [tokenizer.encode(text)[:max_tokens] for text, _ in texts],
        [np.array([ids[label] for label in labels], np.int32) for _, labels in texts],
    )


class _Collected:
    """Reads lists of files, drops what is empty or repeated, and counts it."""

    def __init__(self, reader: Reader, *, joined: bool) -> None:
        self._reader = reader
        self._joined = joined
        self.files: list[Path] = []
        self.counts: Counter[str] = Counter()

    def read(self, patterns: Sequence[str], option: str) -> list[LabelledText]:
        """The texts of the files that an option names."""
        texts: list[LabelledText] = []
        for pattern in patterns:
            found = self._reader.files(pattern, option)
            self.files += found
            for path in found:
                for text in self._reader.texts(path, self.counts):
                    self.counts["read"] += 1
                    if is_blank(text[0]):
                        self.counts["dropped: empty"] += 1
                    else:
                        texts.append(text)
        return _unique(texts, self.counts, joined=self._joined)


def _unique(
    texts: Sequence[LabelledText], counts: Counter[str], *, joined: bool
) -> list[LabelledText]:
    """Each text with its labels once; with `joined` each text once, with the labels of all."""
    if not joined:
        found = list(dict.fromkeys(texts))
        counts["dropped: repeated"] += len(texts) - len(found)
        return found
    labels: dict[str, set[str]] = {}
    for text, names in texts:
        labels.setdefault(text, set()).update(names)
    counts["joined: the same text"] += len(texts) - len(labels)
    return [(text, tuple(sorted(names))) for text, names in labels.items()]


class _Cut:
    """Cuts texts to so many tokens."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int, rules: Rules) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._rules = rules

    def cut(self, splits: Splits, counts: Counter[str]) -> Splits:
        """The texts by split. Texts that are equal once they are cut become one, in one split."""
        found: Splits = {}
        number = 0
        for name, texts in splits.items():
            pieces = [self._pieces(text) for text in texts]
            number += sum([text] != x for text, x in zip(texts, pieces, strict=True))
            found[name] = [piece for x in pieces for piece in x]
        if not number:
            return splits
        counts["cut: longer than max_tokens"] += number
        joined = self._rules.joined
        found = {name: _unique(texts, counts, joined=joined) for name, texts in found.items()}
        hold_out(found, counts)
        return found

    def _pieces(self, labelled: LabelledText) -> list[LabelledText]:
        text, labels = labelled
        if len(text) <= self._max_tokens:
            return [labelled]
        spans = self._tokenizer.spans(text)
        if len(spans) <= self._max_tokens:
            return [labelled]
        if self._rules.pieces is not None:
            return self._rules.pieces(labelled, self._max_tokens)
        end = spans[self._max_tokens - 1][1]
        return [(text[:end], labels[:end] if self._rules.by_character else labels)]


def _names(splits: Splits, known: Sequence[str], counts: Counter[str]) -> list[str]:
    """The known labels and those of training texts. Drops held-out texts with any others."""
    trained = {label for _, labels in splits["train"] for label in labels}
    for name, texts in splits.items():
        splits[name] = [text for text in texts if trained.issuperset(text[1])]
        if dropped := len(texts) - len(splits[name]):
            counts[f"dropped: label not in training, from {name}"] += dropped
    names = [*known, *sorted(trained - {*known})]
    if len(names) > MAX_LABELS:
        raise ConfigError(f"data: {len(names):,} different labels; at most {MAX_LABELS:,}")
    return names


def _check_enough(config: LabelDataConfig, splits: Splits, counts: Counter[str]) -> None:
    for name in ("train", "valid"):
        if not splits[name]:
            raise ConfigError(too_little(config, counts, name, "text"))


def _count_ambiguous(splits: Splits, counts: Counter[str]) -> None:
    """Count the texts that the data label in several ways; all ways are kept."""
    for texts in splits.values():
        times = Counter(text for text, _ in texts)
        counts["kept: texts with different labels"] += sum(n > 1 for n in times.values())
    # A count of zero says nothing.
    for reason in [reason for reason, number in counts.items() if not number]:
        del counts[reason]
