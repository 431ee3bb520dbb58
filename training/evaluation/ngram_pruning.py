"""Pruning: which n-grams change a model's predictions least and may be left out.

V vocabulary, G distinct n-grams of a level, H histories.

Source: Stolcke, "Entropy-based pruning of backoff language models", DARPA Broadcast News
Transcription and Understanding Workshop (1998), for an interpolated model. An n-gram h w that is
left out hands its mass to its history, so that the probabilities still sum to one:

    gamma'(h) = gamma(h) + mass(h w),    p'(w | h) = gamma'(h) p(w | h').

Its value is what the model loses, in nats a token: p(h) times the Kullback-Leibler divergence of
p'(. | h) from p(. | h), where the terms of other tokens with mass of their own, which hardly move,
are linearized. Every n-gram is valued against the whole model.

p(h) is the product of its tokens' probabilities, each by the model whose order is one more than the
token's history is long. The lower orders of Kneser-Ney say how often a token follows a *new*
history, and nothing about how often h occurs: with them, pruning costs three to six times as much
on Alice's Adventures in Wonderland. See Chelba, Brants, Neveitt and Xu, "Study on interaction
between entropy pruning and Kneser-Ney smoothing", Interspeech 2010.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from service.bundle.text import BOS_ID, EOS_ID
from training.evaluation.ngram import Floats, Ids, Level, NGramModel, Weights

Kept = npt.NDArray[np.bool_]


def prune(model: NGramModel, *, threshold: float = 0.0, at_most: int | None = None) -> NGramModel:
    """A model of `ngram.fit` without the n-grams of two tokens and more that are worth least.

    Those worth no more than `threshold` nats a token go, unless it is 0; then the least valuable
    until `at_most` are left. A kept n-gram keeps its beginnings, which are worth no less.
    """
    values = _values(model)
    flat = np.concatenate(values)
    count = len(flat) if threshold == 0.0 else int(np.count_nonzero(flat > threshold))
    if at_most is not None:
        count = min(count, at_most)
    if count == len(flat):
        return model
    kept = np.zeros(len(flat), np.bool_)
    # Stable: of equals, the shorter one stays, which the longer one may begin with.
    kept[np.argsort(-flat, kind="stable")[:count]] = True
    bounds = np.cumsum([len(x) for x in values])[:-1]
    return _without(model, np.split(kept, bounds))


def _values(model: NGramModel) -> list[Floats]:
    """[G] for each level: the most that an n-gram, or one that begins with it, is worth."""
    vocab_size = len(model.unigram)
    probs = model.continuation  # of the n-grams one token shorter
    frequency = model.unigram.copy()  # p(h), for the histories of a level
    frequency[BOS_ID] = frequency[EOS_ID]  # a document has one of each
    suffixes: Ids = np.zeros(vocab_size, np.int64)  # ranks of the histories, less the first token
    ranks: Callable[[Ids], Ids] = np.asarray
    values, histories = [], []
    for level, weights in zip(model.levels, model.weights, strict=True):
        history, token = np.divmod(level.keys[:-1], vocab_size)  # [G]
        suffixes = ranks(suffixes[history] * vocab_size + token)
        lower = probs[suffixes]
        mass, gamma = weights.mass[:-1], weights.gamma
        probs = mass + gamma[history] * lower
        divergence = _divergences(mass, gamma, history, lower)
        values.append(frequency[history] * divergence)
        histories.append(history)
        highest = level.highest
        frequency = frequency[history] * (highest.mass[:-1] + highest.gamma[history] * lower)
        ranks = level.ranks
    for i in range(len(values) - 1, 0, -1):
        np.maximum.at(values[i - 1], histories[i], values[i])
    return values


def _divergences(
    mass: Floats, gamma: Floats, history: npt.NDArray[np.int64], lower: Floats
) -> Floats:
    """[G] Kullback-Leibler divergence of p'(. | h) from p(. | h) without each n-gram, nats."""
    before = gamma[history]
    after = before + mass
    own = mass + before * lower
    known = np.bincount(history, lower, minlength=len(gamma))[history]
    others = mass * (known - lower)  # of the tokens with mass of their own, linearized
    unseen = np.maximum(1.0 - known, 0.0)
    divergence: Floats = (
        own * np.log(own / (after * lower)) - others - before * unseen * np.log(after / before)
    )
    return divergence


def _without(model: NGramModel, kept: Sequence[Kept]) -> NGramModel:
    """The model with the n-grams that are kept, in every level."""
    vocab_size = len(model.unigram)
    remain = np.ones(vocab_size, np.bool_)  # histories of a level
    levels = []
    for level, weights, keep in zip(model.levels, model.weights, kept, strict=True):
        history, token = np.divmod(level.keys[:-1], vocab_size)
        mass = weights.mass[:-1]
        freed = np.bincount(history[~keep], mass[~keep], minlength=len(weights.gamma))
        gamma = (weights.gamma + freed)[np.append(remain, True)]
        ranks = np.cumsum(remain) - 1
        keys = ranks[history[keep]] * vocab_size + token[keep]
        own = Weights(np.append(mass[keep], 0.0), gamma)
        levels.append(Level(np.append(keys, level.keys[-1]), own, own))
        remain = keep
    return NGramModel(model.order, model.unigram, model.continuation, tuple(levels))
