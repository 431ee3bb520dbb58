"""Texts with a label for each character: from aligned strings, or from columns of words."""

import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

from service.bundle.labeler import Labels
from service.bundle.text import Normalization, is_blank, normalize
from service.bundle.tokenization import Tokenizer
from training.config import TaggerDataConfig
from training.data import labelled_texts
from training.data.faults import Faults, two_columns
from training.data.labelled import LabelledCorpus
from training.data.labelled_texts import LabelledText, Reader, Rules, labelled_corpus
from training.errors import ConfigError
from training.text_files import input_files, read_lines

_CHANGES_LENGTH = (
    "the text's normalization changes its length, so its labels would no longer fit; write the "
    "file in NFC (`uconv -x nfc`), or change data.text.normalization"
)
# Whether a word's label begins a tag or continues it, in BIO, BIOES and BILOU.
_BEGINS = {"B": True, "S": True, "U": True, "I": False, "E": False, "L": False}
_TAG = re.compile(r"([BSUIEL])-(.+)", re.DOTALL)

_BETWEEN_DOCUMENTS = "-DOCSTART-"  # the word of a line of CoNLL 2003 that is no text

_Word: TypeAlias = tuple[str, str]  # with its label


def prepare_tagger(
    config: TaggerDataConfig,
    base: Path,
    known: Sequence[Tokenizer] = (),
    known_labels: Sequence[str] = (),
) -> LabelledCorpus:
    """Read, filter, split and tokenize. Raises ConfigError for files that cannot be used.

    A text that the files label in different ways is kept in all of them, and counted.
    """
    rules = Rules(labels=partial(_labels, outside=config.outside), by_character=True)
    return labelled_corpus(config, _READERS[config.form](config, base), rules, known, known_labels)


def input_digest(config: TaggerDataConfig, base: Path) -> str:
    """`LabelledCorpus.sha256` for the files as they are now. Raises ConfigError for none."""
    return labelled_texts.input_digest(config, _READERS[config.form](config, base))


def aligned_text(text: str, labels: Sequence[str], rules: Normalization) -> LabelledText | None:
    """A text as the model reads it, with a label for each character.

    None if its normalization changes the number of its characters.
    """
    alone = rules.model_copy(update={"strip": False})
    whole = normalize(text, alone)
    # If each character becomes one, and the number stays the same, none has been composed.
    if len(whole) != len(text) or (
        whole != text and any(len(normalize(character, alone)) != 1 for character in {*text})
    ):
        return None
    if not rules.strip:
        return whole, tuple(labels)
    start = len(whole) - len(whole.lstrip())
    kept = whole.strip()
    return kept, tuple(labels[start : start + len(kept)])


def _labels(names: Sequence[str], *, outside: str) -> Labels:
    if len(names) < 2:
        raise ConfigError("data: all characters have the same label; a tagger needs two or more")
    return Labels(
        names=list(names),
        scope="character",
        several=False,
        scheme="bio" if _is_bio(names, outside) else "plain",
        outside=outside if outside in names else None,
    )


def _is_bio(labels: Sequence[str], outside: str) -> bool:
    """Whether labels begin and continue tags."""
    tags = [label for label in labels if label != outside]
    return all(map(_TAG.fullmatch, tags)) and any(tag[:2] in {"B-", "I-"} for tag in tags)


class _Aligned:
    """A line is text, tab, and one label for each character."""

    def __init__(self, config: TaggerDataConfig, base: Path) -> None:
        self._config = config
        self._base = base

    def files(self, pattern: str, option: str) -> Sequence[Path]:
        """As everywhere."""
        return input_files([pattern], self._base, option)

    def texts(self, path: Path, counts: Counter[str], /) -> Iterator[LabelledText]:
        """The lines that have as many labels as characters."""
        faults = Faults(path, counts, "a line is text, tab, and one label for each character")
        for number, text, labels in two_columns(path, counts, faults):
            if len(text) != len(labels):
                found = f"there are {len(text):,} characters and {len(labels):,} labels"
                faults.drop(number, "as many labels as characters are needed", found)
                continue
            labelled = aligned_text(text, labels, self._config.text.normalization)
            if labelled is None:
                faults.drop(number, "normalization changes its length", _CHANGES_LENGTH)
                continue
            yield labelled


class _Columns:
    """A line is a word and its label, in its first and last columns; texts end at blank lines."""

    def __init__(self, config: TaggerDataConfig, base: Path) -> None:
        self._config = config
        self._base = base

    def files(self, pattern: str, option: str) -> Sequence[Path]:
        """As everywhere."""
        return input_files([pattern], self._base, option)

    def texts(self, path: Path, counts: Counter[str], /) -> Iterator[LabelledText]:
        """The texts of the file, with a label for each of their characters."""
        expected = "a line is a word and, in its last column, its label; a blank line ends a text"
        faults = Faults(path, counts, expected)
        texts = list(_sentences(path, faults))
        faults.check()
        if texts and all(words[0][0] == "1" for _, words in texts):
            raise ConfigError(
                f"{path}: the first column numbers the words, as in CoNLL-U; keep only words "
                f"and labels: cut -f2,4 {shlex.quote(str(path))} > words.tsv"
            )
        labels = {label for _, words in texts for _, label in words}
        bio = _is_bio([*labels], self._config.outside)
        for number, words in texts:
            labelled = self._text(words, bio=bio)
            if labelled is None:
                faults.drop(number, "normalization changes its length", _CHANGES_LENGTH)
                continue
            yield labelled
        faults.check()

    def _text(self, words: Sequence[_Word], *, bio: bool) -> LabelledText | None:
        """The words as one text; None if a word has another length alone than in the text."""
        joiner, rules = self._config.joiner, self._config.text.normalization
        pieces = [(normalize(word, rules), label) for word, label in words]
        labels = _of_characters(pieces, len(joiner), self._config.outside, bio=bio)
        text = normalize(joiner.join(word for word, _ in words), rules)
        return (text, tuple(labels)) if len(text) == len(labels) else None


def columns_of(lines: Sequence[str]) -> list[list[str] | None]:
    """The columns of the lines of a file; None for comments, such as `# sent_id = 7`.

    A word may begin with #, too. So a comment has as many columns as no other line, or no tab where
    others have one.
    """
    others = [line for line in lines if not line.startswith("#")]
    tabs = any("\t" in line for line in others)
    widths = {len(_split(line)) for line in others}
    found: list[list[str] | None] = []
    for line in lines:
        columns = _split(line)
        is_other = len(columns) not in widths or (tabs and "\t" not in line)
        found.append(None if line.startswith("#") and is_other else columns)
    return found


def _split(line: str) -> list[str]:
    return line.split("\t") if "\t" in line else line.split()


def _sentences(path: Path, faults: Faults) -> Iterator[tuple[int, list[_Word]]]:
    """The texts of a file: the number of the first line, and the words with their labels."""
    start, words = 1, list[_Word]()
    lines = list(read_lines(path))
    for number, (line, columns) in enumerate(zip(lines, columns_of(lines), strict=True), start=1):
        if is_blank(line):
            if words:
                yield start, words
            start, words = number + 1, []
            continue
        if columns is None:
            continue
        faults.lines += 1
        word, label = columns[0].strip(), columns[-1].strip()
        if len(columns) < 2 or not word or not label:
            faults.drop(number, "no label", "there is no second column")
        elif word != _BETWEEN_DOCUMENTS:
            words.append((word, label))
    if words:
        yield start, words


def _of_characters(
    words: Sequence[_Word], joiner_length: int, outside: str, *, bio: bool
) -> list[str]:
    """The label of each character of words and of what stands between them.

    With plain labels, each character of a word has the word's label, and what stands between words
    is outside. With BIO, a tag includes what stands between its words, and every tag begins with
    B-, even if it does not in the file (IOB1).
    """
    found: list[str] = []
    inside = None  # the tag that the word before belongs to
    for i, (word, label) in enumerate(words):
        tag = _TAG.fullmatch(label) if bio else None
        first = rest = label
        between = outside
        if tag is not None:
            begins = _BEGINS[tag[1]] or inside != tag[2]
            rest = f"I-{tag[2]}"
            first = f"B-{tag[2]}" if begins else rest
            between = outside if begins else rest
        inside = tag[2] if tag is not None else None
        found += [between] * (joiner_length if i else 0)
        found += [first, *[rest] * (len(word) - 1)][: len(word)]
    return found


_READERS: Mapping[str, Callable[[TaggerDataConfig, Path], Reader]] = {
    "aligned": _Aligned,
    "columns": _Columns,
}
