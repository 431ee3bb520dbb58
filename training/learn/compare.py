"""How sure it is that a model is better than an n-gram: both on the same held-out texts."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from training import ngram
from training.config import BaselineConfig
from training.corpus import Corpus, Split
from training.evaluation import evaluate
from training.export import held_out_split
from training.language_model import LanguageModel

_GROUPS = 40
_FEW_DOCUMENTS = 4  # fewer are cut into pieces
_PIECE_TOKENS = 50  # of a piece at least
_MAX_TOKENS = 400_000  # of the held-out text; more makes nothing surer that matters


@dataclass(frozen=True, slots=True)
class Difference:
    """Bits a character that a model saves, with the standard error."""

    order: int  # of the n-gram, the best on this text
    bits_per_char: float
    standard_error: float


def against_ngrams(model: LanguageModel, corpus: Corpus, config: BaselineConfig) -> Difference:
    """The model beside the best n-gram of the training split, on the held-out one.

    The standard error is the jackknife's over groups of texts, or over pieces of a long one.
    """
    train = corpus.train
    starts = train.starts[train.starts <= config.max_train_chars]
    models = ngram.fit(train.ids[: starts[-1]], starts, len(corpus.vocab), config.max_order)
    groups = list(_groups(held_out_split(corpus)[1]))
    floors = [ngram.evaluate(models, x.ids, x.starts) for x in groups]
    order = min(floors[0], key=lambda n: sum(floor[n] for floor in floors))
    device = torch.device("cpu")
    saved = [
        floor[order] - evaluate(model, group, device).nats
        for floor, group in zip(floors, groups, strict=True)
    ]
    chars = np.array([group.chars for group in groups]) * math.log(2)
    return Difference(order, sum(saved) / chars.sum(), _jackknife(np.array(saved), chars))


def _jackknife(totals: npt.NDArray[np.float64], sizes: npt.NDArray[np.float64]) -> float:
    """Of a ratio of sums: its spread where each group is left out in turn (Tukey 1958)."""
    n = len(totals)
    if n < 2:
        return math.inf
    without = (totals.sum() - totals) / (sizes.sum() - sizes)
    return float(np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum()))


def _groups(split: Split) -> Iterator[Split]:
    """Every so many-eth document together, or pieces of a split that has few of them."""
    ids, starts = split.ids[:_MAX_TOKENS], split.starts
    documents = int((starts[1:] <= len(ids)).sum())
    if documents < _FEW_DOCUMENTS:
        pieces = max(1, min(_GROUPS, len(ids) // _PIECE_TOKENS))
        for start, end in itertools.pairwise(np.linspace(0, len(ids), pieces + 1).astype(np.int64)):
            yield Split(ids[start:end], np.array([0, end - start]))
        return
    for first in range(min(_GROUPS, documents)):
        chosen = [ids[starts[i] : starts[i + 1]] for i in range(first, documents, _GROUPS)]
        yield Split(np.concatenate(chosen), np.cumsum([0, *map(len, chosen)]))
