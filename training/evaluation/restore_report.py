"""How good restored texts are, and two baselines: the text as it is, and a table of words.

A restored text has as many characters as the one it was made from, so its words stand at the same
places as those of the truth: no alignment is needed. A word is a run of letters.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from service.bundle.labeler import LabelerMeasurement, LabelMetric, Labels
from service.bundle.losses import lost
from training.data.labelled import LabelIds, LabelledCorpus, LabelledSplit
from training.evaluation.label_floors import LabelFloors
from training.evaluation.labeler import Judged, label_metrics

_WORD = re.compile(r"[^\W\d_]+")


def restored(text: str, ids: Iterable[int], labels: Labels) -> str:
    """The text with its characters' labels applied."""
    names = (labels.names[i] for i in ids)
    return "".join(name or x for x, name in zip(text, names, strict=True))


def restore_metrics(
    texts: Sequence[str], truths: Sequence[str], found: Sequence[str]
) -> dict[LabelMetric, float]:
    """Error rates of words and characters, and how many characters have another base letter.

    `texts` are what the model read. A base letter is what is left without accents and case.
    """
    words = wrong_words = characters = wrong = base = 0
    for text, truth, answer in zip(texts, truths, found, strict=True):
        for word in _WORD.finditer(truth):
            words += 1
            wrong_words += answer[word.start() : word.end()] != word[0]
        characters += len(truth)
        wrong += sum(x != y for x, y in zip(truth, answer, strict=True))
        base += sum(x != y for x, y in zip(_base(text), _base(answer), strict=True))
    return {
        "word_error_rate": wrong_words / max(words, 1),
        "character_error_rate": wrong / max(characters, 1),
        "base_errors": float(base),
    }


def split_values(
    found: Sequence[Judged], split: LabelledSplit, labels: Labels
) -> dict[LabelMetric, float]:
    """The metrics of the answers for a split; if labels are characters, also of restored texts."""
    values = label_metrics(found, labels)
    if not labels.applied:
        return values
    answers = [restored(x, y.found, labels) for x, y in zip(split.texts, found, strict=True)]
    return values | restore_metrics(split.texts, _truths(split, labels), answers)


class WordTable:
    """The commonest spelling of each word in the training texts; other words stay as they are.

    A word that was not seen with this case is looked up without case.
    """

    def __init__(self, texts: Sequence[str], truths: Sequence[str]) -> None:
        counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for text, truth in zip(texts, truths, strict=True):
            for word in _WORD.finditer(text):
                spelling = truth[word.start() : word.end()]
                counts[word[0]][spelling] += 1
                lower, lower_spelling = (lost(x, ["case"]) for x in (word[0], spelling))
                if lower != word[0]:
                    counts[lower][lower_spelling] += 1
        # Of equally common spellings, the first in the order of characters.
        self._spellings: Mapping[str, str] = {
            word: min(found, key=lambda spelling: (-found[spelling], spelling))
            for word, found in counts.items()
        }

    def restore(self, text: str) -> str:
        """The text with each word in its commonest spelling."""
        return _WORD.sub(lambda word: self._spelled(word[0]), text)

    def _spelled(self, word: str) -> str:
        if word in self._spellings:
            return self._spellings[word]
        spelling = self._spellings.get(lost(word, ["case"]), word)
        return "".join(_like(x, y) for x, y in zip(word, spelling, strict=True))


class Floors(Protocol):
    """The baselines, which need no network."""

    def measure(self, split: LabelledSplit) -> list[LabelerMeasurement]:
        """The floors on a split, weakest first."""


class RestoreFloors:
    """The text as it is, and the commonest spelling of each of its words."""

    def __init__(self, corpus: LabelledCorpus) -> None:
        self._labels = corpus.labels
        table = WordTable(corpus.train.texts, _truths(corpus.train, corpus.labels))
        self._floors: Mapping[str, Callable[[str], str]] = {
            "copy": lambda text: text,
            "word table": table.restore,
        }

    def measure(self, split: LabelledSplit) -> list[LabelerMeasurement]:
        """See `Floors`."""
        truths = _truths(split, self._labels)
        found = []
        for name, restore in self._floors.items():
            answers = [restore(text) for text in split.texts]
            values = _shares(truths, answers) | restore_metrics(split.texts, truths, answers)
            found.append(LabelerMeasurement(name=name, kind="baseline", values=values))
        return found


def floors_of(corpus: LabelledCorpus) -> Floors:
    """The floors for the labels of a corpus."""
    return RestoreFloors(corpus) if corpus.labels.applied else LabelFloors(corpus)


def _shares(truths: Sequence[str], answers: Sequence[str]) -> dict[LabelMetric, float]:
    characters = sum(map(len, truths))
    pairs = list(zip(truths, answers, strict=True))
    right = sum(x == y for truth, answer in pairs for x, y in zip(truth, answer, strict=True))
    whole = sum(truth == answer for truth, answer in pairs)
    return {"accuracy": right / max(characters, 1), "exact_match": whole / max(len(truths), 1)}


def _truths(split: LabelledSplit, labels: Labels) -> list[str]:
    def whole(text: str, ids: LabelIds) -> str:
        return restored(text, ids.tolist(), labels)

    return [whole(text, ids) for text, ids in zip(split.texts, split.labels, strict=True)]


def _base(text: str) -> str:
    return lost(text, ["accents", "case"])


def _like(character: str, spelling: str) -> str:
    """The spelling in the case of the character, where that is one character."""
    upper = spelling.upper()
    return upper if character.isupper() and len(upper) == 1 else spelling
