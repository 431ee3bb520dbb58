"""Any text as a text that has lost something, and what each of its characters was before.

n characters of a text, V vocabulary, L labels.

A label is the character that stands in the original text; "" means that nothing was lost. A
character can only have labels from which it is left, so that restoring never changes a base letter.
Characters that training would restore too rarely are not lost: they stay in the text.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from service.bundle.labeler import Labels
from service.bundle.losses import Loss, lost
from service.bundle.text import normalize
from service.bundle.tokenization import Tokenizer
from training.config import RestoreDataConfig
from training.data import labelled_texts
from training.data.labelled import LabelledCorpus
from training.data.labelled_texts import LabelledText, Rules, Splits, labelled_corpus
from training.errors import ConfigError
from training.text_files import input_files, read_lines, read_text

SAME = ""  # the label of a character that has lost nothing


def prepare_restore(
    config: RestoreDataConfig,
    base: Path,
    known: Sequence[Tokenizer] = (),
    known_labels: Sequence[str] = (),
) -> LabelledCorpus:
    """Read, lose, split and tokenize. Raises ConfigError for files that cannot be used.

    Texts are split by what is left of them, so none of another split reads the same. Texts that are
    too long are cut at white space.
    """
    kept = known_labels or [SAME]
    rules = Rules(
        labels=_labels,
        by_character=True,
        pieces=pieces,
        revise=partial(_without_rare, min_count=config.min_count, known=kept),
    )
    corpus = labelled_corpus(config, _Texts(config, base), rules, known, kept)
    allowed = allowed_labels(corpus.tokenizer.tokens, corpus.labels.names, config.loss)
    return replace(corpus, allowed=allowed)


def input_digest(config: RestoreDataConfig, base: Path) -> str:
    """`LabelledCorpus.sha256` for the files as they are now. Raises ConfigError for none."""
    return labelled_texts.input_digest(config, _Texts(config, base))


def losing(text: str, loss: Sequence[Loss]) -> LabelledText:
    """What is left of a text, and the label of each of its characters."""
    left = lost(text, loss)
    return left, tuple(SAME if x == y else x for x, y in zip(text, left, strict=True))


def pieces(labelled: LabelledText, max_chars: int) -> list[LabelledText]:
    """A text cut to at most so many characters each, at white space where there is some.

    White space at a cut is dropped.
    """
    text, labels = labelled
    found: list[LabelledText] = []
    start = 0
    while start < len(text):
        end = min(start + max_chars, len(text))
        if end < len(text):
            end = next((i for i in range(end, start, -1) if text[i].isspace()), end)
        found.append((text[start:end], labels[start:end]))
        start = end + len(text[end:]) - len(text[end:].lstrip())
    return found


def allowed_labels(
    tokens: Sequence[str], names: Sequence[str], loss: Sequence[Loss]
) -> npt.NDArray[np.bool_]:
    """Which labels a token may have, [V, L]: the empty one, and those from which it is left."""
    ids = {token: i for i, token in enumerate(tokens)}
    allowed = np.zeros((len(tokens), len(names)), np.bool_)
    for label, name in enumerate(names):
        if name == SAME:
            allowed[:, label] = True
        elif (left := lost(name, loss)) != name and left in ids:
            allowed[ids[left], label] = True
    return allowed


class _Texts:
    """A text is a line, or a file."""

    def __init__(self, config: RestoreDataConfig, base: Path) -> None:
        self._config = config
        self._base = base

    def files(self, pattern: str, option: str) -> Sequence[Path]:
        """As everywhere."""
        return input_files([pattern], self._base, option)

    def texts(self, path: Path, counts: Counter[str], /) -> Iterator[LabelledText]:
        """The texts of the file without what they lose."""
        rules = self._config.text.normalization
        whole = read_lines(path) if self._config.documents == "line" else [read_text(path)]
        for text in whole:
            labelled = losing(normalize(text, rules), self._config.loss)
            if normalize(labelled[0], rules) == labelled[0]:
                yield labelled
            else:  # a mark follows that combines with the bare letter
                counts["dropped: what is left is normalized otherwise"] += 1


def _labels(names: Sequence[str]) -> Labels:
    if len(names) < 2:
        raise ConfigError("data: nothing in the training texts is lost by data.loss")
    return Labels(names=list(names), scope="character", several=False, outside=SAME, applied=True)


def _without_rare(
    splits: Splits, counts: Counter[str], *, min_count: int, known: Sequence[str]
) -> Splits:
    """The texts, with the characters that training would restore too rarely put back."""
    times = Counter(label for _, labels in splits["train"] for label in labels)
    often = {label for label, count in times.items() if count >= min_count} | {*known}
    found: Splits = {}
    for name, texts in splits.items():
        rare = sum(label not in often for _, labels in texts for label in labels)
        if rare:
            counts[f"kept as they are: rare characters of {name}"] += rare
        found[name] = [_with(text, often) for text in texts] if rare else texts
    return found


def _with(labelled: LabelledText, often: set[str]) -> LabelledText:
    """The text with only these labels; characters with other labels are put back into it."""
    text, labels = labelled
    characters = (x if y in often else y for x, y in zip(text, labels, strict=True))
    return "".join(characters), tuple(y if y in often else SAME for y in labels)
