"""Texts that have one label each, or several: from TSV files, or from one folder for each label."""

import glob
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from service.bundle.labeler import Labels
from service.bundle.text import normalize
from service.bundle.tokenization import Tokenizer
from training.config import ClassifierDataConfig
from training.data import labelled_texts
from training.data.faults import Faults, two_columns
from training.data.labelled import LabelledCorpus
from training.data.labelled_texts import LabelledText, Reader, Rules, Splits, labelled_corpus
from training.errors import ConfigError
from training.text_files import input_files, read_lines, read_text


def prepare_classifier(
    config: ClassifierDataConfig,
    base: Path,
    known: Sequence[Tokenizer] = (),
    known_labels: Sequence[str] = (),
) -> LabelledCorpus:
    """Read, filter, split and tokenize. Raises ConfigError for files that cannot be used.

    A text with different labels on different lines is kept with each of them, and counted: a model
    learns how often each is right. If texts may have several labels, it has all of them.
    """
    rules = Rules(
        labels=partial(_labels, several=config.several),
        by_character=False,
        joined=config.several,
        revise=partial(_without_rare, min_texts=config.min_texts),
    )
    return labelled_corpus(config, _READERS[config.form](config, base), rules, known, known_labels)


def input_digest(config: ClassifierDataConfig, base: Path) -> str:
    """`LabelledCorpus.sha256` for the files as they are now. Raises ConfigError for none."""
    return labelled_texts.input_digest(config, _READERS[config.form](config, base))


def _labels(names: Sequence[str], *, several: bool) -> Labels:
    if len(names) < (1 if several else 2):
        raise ConfigError(
            f"data: the training texts have {len(names) or 'no'} label; a classifier needs two or "
            "more (data.min_texts drops rare ones)"
        )
    return Labels(names=list(names), scope="text", several=several)


def _without_rare(splits: Splits, counts: Counter[str], *, min_texts: int) -> Splits:
    """The texts, except those with a label that too few training texts have."""
    while True:
        times = Counter(label for _, labels in splits["train"] for label in labels)
        kept = {
            name: [text for text in texts if all(times[x] >= min_texts for x in text[1])]
            for name, texts in splits.items()
        }
        dropped = sum(map(len, splits.values())) - sum(map(len, kept.values()))
        if not dropped:
            return kept
        # If texts have several labels, that may have made others rare.
        counts["dropped: rare label"] += dropped
        splits = kept


class _Tsv:
    """A line is text, tab, label; or label, tab, text."""

    def __init__(self, config: ClassifierDataConfig, base: Path) -> None:
        self._config = config
        self._base = base

    def files(self, pattern: str, option: str) -> Sequence[Path]:
        """As everywhere."""
        return input_files([pattern], self._base, option)

    def texts(self, path: Path, counts: Counter[str], /) -> Iterator[LabelledText]:
        """The lines with a tab and a label."""
        config = self._config
        first, second = ("label", "text") if config.label_first else ("text", "label")
        expected = f"a line is {first}, tab, {second} (data.label_first swaps the two)"
        faults = Faults(path, counts, expected)
        for number, left, right in two_columns(path, counts, faults):
            text, field = (right, left) if config.label_first else (left, right)
            labels = self._labels(field)
            if not labels and not config.several:
                faults.drop(number, "no label", "there is no label")
                continue
            yield normalize(text, config.text.normalization), labels

    def _labels(self, field: str) -> tuple[str, ...]:
        several = self._config.several
        names = map(_label, field.split(self._config.label_separator) if several else [field])
        return tuple(sorted({name for name in names if name}))


class _Folders:
    """A folder for each label; every file in it is a text, or every line of one."""

    def __init__(self, config: ClassifierDataConfig, base: Path) -> None:
        self._config = config
        self._base = base
        self._labels: dict[Path, str] = {}  # of each file

    def files(self, pattern: str, option: str) -> Sequence[Path]:
        """The files in the folders of the folder, in order."""
        found: dict[Path, str] = {}
        for folder in _folders(pattern, self._base, option):
            inside = [x for x in _visible(folder) if x.is_dir()]
            if not inside:
                raise ConfigError(
                    f'{option}: {folder} has no folders; with form = "folders" it must hold a '
                    "folder for each label, which holds the label's texts as files"
                )
            for place in inside:
                found |= dict.fromkeys(_files_in(place), _label(place.name))
        self._labels |= found
        return list(found)

    def texts(self, path: Path, _: Counter[str], /) -> Iterator[LabelledText]:
        """The file, or its lines."""
        whole = self._config.documents == "file"
        labels = (self._labels[path],)
        for text in [read_text(path)] if whole else read_lines(path):
            yield normalize(text, self._config.text.normalization), labels


def _label(text: str) -> str:
    return unicodedata.normalize("NFC", text.strip())


def _folders(pattern: str, base: Path, option: str) -> list[Path]:
    named = base / Path(pattern).expanduser()
    # Before globbing, because names may contain a `[`.
    if named.is_dir():
        return [named]
    pattern = str(Path(pattern).expanduser())
    found = sorted(base / x for x in glob.glob(pattern, root_dir=base, recursive=True))  # noqa: PTH207
    folders = [path for path in found if path.is_dir()]
    if not folders:
        raise ConfigError(f"{option}: no folder is called {pattern!r}, seen from the configuration")
    return folders


def _visible(folder: Path) -> list[Path]:
    return [x for x in sorted(folder.iterdir()) if not x.name.startswith(".")]


def _files_in(folder: Path) -> list[Path]:
    found: list[Path] = []
    for path in _visible(folder):
        found += _files_in(path) if path.is_dir() else [path]
    return found


_READERS: Mapping[str, Callable[[ClassifierDataConfig, Path], Reader]] = {
    "tsv": _Tsv,
    "folders": _Folders,
}
