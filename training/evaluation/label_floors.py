"""What labels can be had without a network: the floors that a labeler must beat.

L labels, n characters of a text.
"""

import numpy as np

from service.bundle.labeler import LabelerMeasurement
from training.data.labelled import LabelledCorpus, LabelledSplit
from training.evaluation.labeler import judged, label_metrics


class LabelFloors:
    """The floors of a corpus, fitted on its training split."""

    def __init__(self, corpus: LabelledCorpus) -> None:
        self._labels = corpus.labels
        n = np.bincount(np.concatenate(corpus.train.labels), minlength=len(corpus.labels.names))
        # Of several labels, how many texts have each; with one text more of each kind.
        total = len(corpus.train) + 2 if corpus.labels.several else n.sum() + len(n)
        self._shares = np.log((n + 1) / total)  # [L]

    def measure(self, split: LabelledSplit) -> list[LabelerMeasurement]:
        """Every floor on a split."""
        of_characters = self._labels.scope == "character"
        logprobs = [
            np.tile(self._shares, (len(ids), 1)) if of_characters else self._shares
            for ids in split.labels
        ]
        values = label_metrics(judged(self._labels, logprobs, split.labels), self._labels)
        return [LabelerMeasurement(name="majority", kind="baseline", values=values)]
