"""Guess numbers at export: which models get them, from how many samples, and the typical number."""

import logging

import numpy as np
import torch

from service.bundle.guesses import GuessCurve
from training.config import AnyLanguageModelConfig
from training.data.corpus import Corpus, Split
from training.evaluation.guesses import curve_of, sample_texts
from training.evaluation.language_model import evaluate
from training.evaluation.uncertainty import units_of
from training.networks.mixture import AnyLanguageModel

_SEED = 0
# Characters to draw in all, which takes seconds, and the samples that this makes.
_CHARS = 200_000
_LEAST_SAMPLES, _MOST_SAMPLES = 1000, 20_000
# Texts are counted up to this many times the length of the longest training text ...
_TIMES_LONGEST = 4
_MOST_CHARS = 1024  # ... and up to this length
_MOST_CUT = 0.001  # of the samples
_HELD_OUT_TOKENS = 200_000
_CPU = torch.device("cpu")
_LOG = logging.getLogger(__name__)


def guess_curve(
    model: AnyLanguageModel, config: AnyLanguageModelConfig, corpus: Corpus
) -> GuessCurve | None:
    """The model's guess numbers; None if its texts are not lines, or are too varied."""
    if config.data.documents != "line":
        return None
    lengths = np.diff(corpus.train.starts) - 2
    count = int(np.clip(_CHARS / (lengths.mean() + 1), _LEAST_SAMPLES, _MOST_SAMPLES))
    max_chars = min(_MOST_CHARS, _TIMES_LONGEST * int(lengths.max()))
    samples = sample_texts(model, count, max_chars, _SEED)
    if (cut := int((~samples.ended).sum())) > _MOST_CUT * count:
        _LOG.info("no guess numbers: %d of %d samples go on after %d", cut, count, max_chars)
        return None
    logprobs, chars = _whole_texts(model, corpus.held_out)

    def typical(curve: GuessCurve) -> float | None:
        found = [curve.of(*text).guesses for text in zip(logprobs, chars, strict=True)]
        middle = sorted(np.inf if x is None else x for x in found)[len(found) // 2 :][:1]
        return float(middle[0]) if middle and np.isfinite(middle[0]) else None

    curve = curve_of(samples, typical)
    if curve is None:
        _LOG.info("no guess numbers: the texts are too varied for %d samples", count)
    return curve


def _whole_texts(model: AnyLanguageModel, split: Split) -> tuple[list[float], list[int]]:
    """The log-probabilities of a split's texts with their ends, and their characters."""
    split = split.first(_HELD_OUT_TOKENS)
    units, nats = units_of(split), evaluate(model, split, _CPU).unit_nats
    if nats is None or len(units) != split.documents:
        return [], []
    return (-nats).tolist(), units.chars.tolist()
