"""The floors that a labeler should beat: learned from the training texts, measured like a model.

n characters of a text, L labels.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from service.bundle.labeler import LabelerMeasurement, Scope
from training.data.labelled import LabelledCorpus, LabelledSplit
from training.evaluation.label_windows import LabelWindows
from training.evaluation.labeler import Judged, judged, label_metrics

_BLOCK = 2_000_000  # log-probabilities in memory at once

Floats: TypeAlias = npt.NDArray[np.float64]
# Texts of a split to the log-probabilities of each: [L], or [n, L] of its characters.
Floor: TypeAlias = Callable[[LabelledSplit], list[Floats]]


class LabelFloors:
    """The commonest label, and either n-grams of characters (texts) or windows (characters).

    If texts may have several labels, each is judged by itself.
    """

    def __init__(self, corpus: LabelledCorpus, seed: int = 0) -> None:
        self._labels = corpus.labels
        self._floors = {
            "majority": _majority(corpus),
            **_LEARNED[corpus.labels.scope](corpus, seed),
        }

    def measure(self, split: LabelledSplit) -> list[LabelerMeasurement]:
        """The floors on a split, weakest first."""
        return [
            LabelerMeasurement(
                name=name,
                kind="baseline",
                values=label_metrics(self._judged(floor, split), self._labels),
            )
            for name, floor in self._floors.items()
        ]

    def _judged(self, floor: Floor, split: LabelledSplit) -> list[Judged]:
        found: list[Judged] = []
        for part in _parts(split, _BLOCK // len(self._labels.names)):
            found += judged(self._labels, floor(part), part.labels)
        return found


def _parts(split: LabelledSplit, most_chars: int) -> Iterator[LabelledSplit]:
    """The split in parts of about so many characters."""
    start = chars = 0
    for end, text in enumerate(split.texts, start=1):
        chars += len(text)
        if chars >= most_chars or end == len(split):
            part = slice(start, end)
            yield LabelledSplit(
                split.name, split.texts[part], split.tokens[part], split.labels[part]
            )
            start, chars = end, 0


def _majority(corpus: LabelledCorpus) -> Floor:
    """How often each label is given in training, whatever the text."""
    labels, train = corpus.labels, corpus.train
    counts = np.bincount(np.concatenate(train.labels), minlength=len(labels.names)) + 1.0
    total = len(train) + 2.0 if labels.several else counts.sum()
    logprobs = np.log(counts / total)
    if labels.scope == "text":
        return lambda split: [logprobs] * len(split)
    return lambda split: [np.tile(logprobs, (len(ids), 1)) for ids in split.tokens]


def _of_texts(corpus: LabelledCorpus, seed: int) -> dict[str, Floor]:
    # scikit-learn takes a second to import, which every command would wait for.
    from training.evaluation.label_ngrams import ngram_floors  # noqa: PLC0415

    return {name: _rows_of(logprobs) for name, logprobs in ngram_floors(corpus, seed).items()}


def _rows_of(logprobs: Callable[[Sequence[str]], Floats]) -> Floor:
    return lambda split: list(logprobs(split.texts))


def _of_characters(corpus: LabelledCorpus, seed: int) -> dict[str, Floor]:
    windows = LabelWindows(corpus.train, len(corpus.labels.names), seed)
    part = f" ({windows.texts:,} texts)" if windows.texts < len(corpus.train) else ""
    return {f"window{part}": lambda split: windows.logprobs(split.tokens)}


_LEARNED: Mapping[Scope, Callable[[LabelledCorpus, int], dict[str, Floor]]] = {
    "text": _of_texts,
    "character": _of_characters,
}
