"""N-gram baselines: a smoothed unigram, and interpolated modified Kneser-Ney of every order.

N training tokens, D documents, T time, V vocabulary, G distinct n-grams of a level, H histories.

Source: Chen and Goodman, "An empirical study of smoothing techniques for language modeling",
Computer Speech and Language 13 (1999), section 3. With h' the history h without its oldest token,

    p(w | h) = (c(h w) - D(c(h w))) / c(h) + gamma(h) p(w | h'),

where c(h) is the sum of c(h w) over w, gamma(h) gives back what the discounts D took, and an
unseen history has p(w | h) = p(w | h'). The highest order counts occurrences; the lower ones
count distinct tokens to the left, except after a document's start, where nothing stands to the
left and occurrences are counted (as SRILM and KenLM do). The recursion ends in the uniform
distribution over the V - 2 tokens that can be predicted: all but pad and bos.

An n-gram is known by its rank among the sorted keys `rank of its first n - 1 tokens * V + last
token`, so a key fits 64 bits at any order and vocabulary. The rank after the last one stands for
every n-gram that was not seen: it has no mass, gives its lower order everything, and every longer
n-gram built on it is unseen too. So a history ends at its document's start without a rule for it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from service.bundle.text import BOS_ID, PAD_ID

Ids = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.float64]

# Tokens scored at once: bounds what evaluation holds beside the tables.
_WINDOW_TOKENS = 1 << 17
# Of n-grams counted once, twice, and more often, where a corpus is too small to estimate them;
# KenLM's `--discount_fallback` has the same.
_FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)


@dataclass(frozen=True, slots=True)
class _Table:
    """The distinct n-grams of one length, counted both ways."""

    keys: npt.NDArray[np.int64]  # [G] sorted
    counts: Ids  # [G] occurrences
    lower_counts: Ids  # [G] distinct tokens to the left; occurrences after a document's start


@dataclass(frozen=True, slots=True)
class Weights:
    """The two terms of the interpolation; the last element of each is the unseen one's."""

    mass: Floats  # [G + 1] discounted relative frequency of an n-gram
    gamma: Floats  # [H + 1] weight of the lower order after a history

    def interpolate(self, ranks: Ids, histories: Ids, lower: Floats) -> Floats:
        """[T] probabilities at this level from those one level below."""
        return self.mass[ranks] + self.gamma[histories] * lower


@dataclass(frozen=True, slots=True)
class Level:
    """The n-grams of one length."""

    keys: npt.NDArray[np.int64]  # [G + 1] sorted; the last is larger than any key
    highest: Weights  # by occurrences: when this is the order of the model
    lower: Weights  # by continuations: below a higher order

    def ranks(self, keys: Ids) -> Ids:
        """[T] ranks of n-grams; G for the unseen."""
        found = np.searchsorted(self.keys, keys)
        return np.where(self.keys[found] == keys, found, len(self.keys) - 1)


@dataclass(frozen=True, slots=True)
class NGramModel:
    """One order of a fit. The orders of one fit share their tables."""

    order: int
    unigram: Floats  # [V] the model of order 1
    continuation: Floats  # [V] what stands for order 1 below a higher order
    levels: tuple[Level, ...]  # n-grams of 2, 3, ... order tokens

    @property
    def weights(self) -> list[Weights]:
        """What this order uses of each level."""
        return [*(x.lower for x in self.levels[:-1]), *(x.highest for x in self.levels[-1:])]

    @property
    def ngrams(self) -> int:
        """Distinct n-grams of two tokens and more."""
        return sum(len(level.keys) - 1 for level in self.levels)

    def logprobs(self, ids: Ids) -> Floats:
        """[T] ids of one document, or of a piece of it, to [T - 1] natural log p of ids[1:].

        A token's history is the up to `order - 1` ids before it. ids[1:] must be predictable:
        pad and bos have probability 0.
        """
        *_, probs = self.probs_by_order(ids)
        return np.log(probs[1:])

    def distributions(self, ids: Ids) -> Floats:
        """[T] ids of one document, or of a piece of it, to [T, V] probabilities of each of them.

        As `logprobs`, with every token of the vocabulary in its place.
        """
        ids = ids.astype(np.int64)
        vocab_size = len(self.unigram)
        if not self.levels:
            return np.tile(self.unigram, (len(ids), 1))
        probs = np.tile(self.continuation, (len(ids), 1))  # [T, V]
        ranks, unseen = ids, vocab_size
        for level, weights in zip(self.levels, self.weights, strict=True):
            histories = np.concatenate(([unseen], ranks[:-1]))  # [T]
            probs *= weights.gamma[histories][:, np.newaxis]
            # Few tokens follow a history, and these alone have mass of their own.
            keys = level.keys[:-1]
            first, last = (np.searchsorted(keys, (histories + i) * vocab_size) for i in (0, 1))
            counts = last - first
            places = np.repeat(np.arange(len(ids)), counts)
            before = np.cumsum(counts) - counts
            found = np.arange(len(places)) - np.repeat(before - first, counts)
            probs[places, keys[found] - histories[places] * vocab_size] += weights.mass[found]
            ranks = level.ranks(histories * vocab_size + ids)
            unseen = len(level.keys) - 1
        return probs

    def probs_by_order(self, ids: Ids) -> Iterator[Floats]:
        """[T] ids to [T] probabilities under order 1, then 2, up to this order.

        Documents may follow each other: each must begin with bos, whose own probability is 0.
        """
        ids = ids.astype(np.int64)
        yield self.unigram[ids]
        probs = self.continuation[ids]
        ranks, unseen = ids, len(self.unigram)
        for level in self.levels:
            histories = np.concatenate(([unseen], ranks[:-1]))  # [T] of the first tokens
            ranks = level.ranks(histories * len(self.unigram) + ids)  # [T]
            yield level.highest.interpolate(ranks, histories, probs)
            probs = level.lower.interpolate(ranks, histories, probs)
            unseen = len(level.keys) - 1


def unigram_logprobs(ids: Ids, starts: Sequence[int] | Ids, vocab_size: int) -> Floats:
    """[V] natural log p of every token without a history; -inf for pad and bos.

    Laplace's rule, (count + 1) / (predicted tokens + V - 2): unk and eos may never occur in
    training, and must have a probability. Arguments as for `fit`.
    """
    ids, _ = _flatten(ids, starts)
    with np.errstate(divide="ignore"):
        return np.log(_unigram(ids, vocab_size))


def fit(ids: Ids, starts: Sequence[int] | Ids, vocab_size: int, max_order: int) -> list[NGramModel]:
    """The models of order 1 (see `unigram_logprobs`) to max_order, in this order.

    `ids` [N] holds documents back to back, each from bos to eos (the last may be cut); `starts`
    [D + 1] their offsets, and the end of the last. Offsets into the middle of `ids` take the
    documents between them. Memory: about 100 bytes a training token, and 40 a distinct n-gram.
    """
    ids, depth = _flatten(ids, starts)
    unigram = _unigram(ids, vocab_size)
    tables = _count(ids, depth, vocab_size, max_order)
    continuation = _continuation(next(tables))
    levels = []
    histories = vocab_size
    for table in tables:
        levels.append(_level(table, vocab_size, histories))
        histories = len(table.keys)
    return [
        NGramModel(order, unigram, continuation, tuple(levels[: order - 1]))
        for order in range(1, max_order + 1)
    ]


def evaluate(
    models: Sequence[NGramModel], ids: Ids, starts: Sequence[int] | Ids
) -> dict[int, float]:
    """Order to total negative logprob, in nats, of every token but the bos of each document."""
    bounds = np.array([int(starts[0]), int(starts[-1])])
    return {order: float(nats[0]) for order, nats in evaluate_parts(models, ids, bounds).items()}


def evaluate_parts(
    models: Sequence[NGramModel], ids: Ids, bounds: npt.NDArray[np.int64]
) -> dict[int, Floats]:
    """Order to [U] total negative logprobs of the parts between [U + 1] offsets into `ids`.

    The first is a document's start. `ids` may be memory-mapped, it is read a window at a time.
    Raises ValueError for models of different fits: the highest order's tables serve them all.
    """
    highest = max(models, key=lambda model: model.order)
    if any(model.unigram is not highest.unigram for model in models):
        raise ValueError("the models must be of one fit")
    totals = {model.order: np.zeros(len(bounds) - 1) for model in models}
    first, last = int(bounds[0]), int(bounds[-1])
    for begin in range(first, last, _WINDOW_TOKENS):
        overlap = min(begin - first, highest.order - 1)
        window = ids[begin - overlap : begin + _WINDOW_TOKENS][: last - begin + overlap]
        predicted = window != BOS_ID
        predicted[:overlap] = False
        places = np.flatnonzero(predicted) + begin - overlap
        part = np.searchsorted(bounds, places, side="right") - 1
        for order, probs in enumerate(highest.probs_by_order(window), start=1):
            if order in totals:
                logprobs = np.log(probs[predicted])
                totals[order] -= np.bincount(part, logprobs, minlength=len(bounds) - 1)
    return totals


def _flatten(
    ids: Ids, starts: Sequence[int] | Ids
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """[N] ids of the documents, and [N] how many tokens of its document stand before each."""
    offsets = np.asarray(starts, np.int64)
    tokens = ids[offsets[0] : offsets[-1]].astype(np.int64)
    offsets = offsets - offsets[0]
    return tokens, np.arange(len(tokens)) - np.repeat(offsets[:-1], np.diff(offsets))


def _unigram(ids: Ids, vocab_size: int) -> Floats:
    probs = np.bincount(ids, minlength=vocab_size).astype(np.float64) + 1.0
    probs[[PAD_ID, BOS_ID]] = 0.0
    probs /= probs.sum()
    return probs


def _count(
    ids: npt.NDArray[np.int64], depth: Ids, vocab_size: int, max_order: int
) -> Iterator[_Table]:
    """The n-grams of 1 token, then 2, up to max_order."""
    ranks = ids  # [N] of the n-gram that ends at each token, where there is one
    keys, counts = np.arange(vocab_size), np.bincount(ids, minlength=vocab_size)
    for order in range(2, max_order + 1):
        ends = np.flatnonzero(depth >= order - 1)  # no n-gram crosses a document's start
        longer_keys, longer_ranks, longer_counts = np.unique(
            ranks[ends - 1] * vocab_size + ids[ends], return_inverse=True, return_counts=True
        )
        suffixes = np.empty(len(longer_keys), np.int64)  # ranks, less the first token
        suffixes[longer_ranks] = ranks[ends]
        continuations = np.bincount(suffixes, minlength=len(keys))
        # Every token but bos has a left neighbour: nothing to the left means bos comes first.
        yield _Table(keys, counts, np.where(continuations > 0, continuations, counts))
        keys, counts = longer_keys, longer_counts
        ranks = np.empty_like(ids)
        ranks[ends] = longer_ranks
    # Nothing longer was counted: no model has this order below its own, or reads its lower counts.
    yield _Table(keys, counts, counts)


def _continuation(table: _Table) -> Floats:
    """[V] the end of the recursion: discounted counts over the uniform distribution."""
    predictable = np.ones(len(table.keys), np.int64)
    predictable[[PAD_ID, BOS_ID]] = 0
    uniform: Floats = predictable / predictable.sum()
    weights = _weights(table.lower_counts * predictable, np.zeros_like(table.keys), 1)
    return weights.mass[:-1] + float(weights.gamma[0]) * uniform


def _level(table: _Table, vocab_size: int, histories: int) -> Level:
    history = table.keys // vocab_size  # [G]
    return Level(
        np.append(table.keys, np.iinfo(np.int64).max),
        _weights(table.counts, history, histories),
        _weights(table.lower_counts, history, histories),
    )


def _weights(counts: Ids, history: Ids, histories: int) -> Weights:
    """Weights from the [G] counts of n-grams and the [G] ranks of their histories."""
    taken = _discounts(counts)[np.minimum(counts, 3)]  # [G]
    # One place more for the unseen history, which is followed by nothing.
    totals = np.bincount(history, counts, minlength=histories + 1)  # [H + 1]
    discounted = np.bincount(history, taken, minlength=histories + 1)  # [H + 1]
    gamma = np.ones(histories + 1)
    np.divide(discounted, totals, out=gamma, where=totals > 0)
    return Weights(np.append((counts - taken) / np.maximum(totals[history], 1), 0.0), gamma)


def _discounts(counts: Ids) -> Floats:
    """[4] discounts of the counts 0, 1, 2, and 3 or more, from the counts of counts.

    With Y = n1 / (n1 + 2 n2): D1 = 1 - 2 Y n2 / n1, D2 = 2 - 3 Y n3 / n2, D3 = 3 - 4 Y n4 / n3.
    All three fall back together where one of n1 to n4 is zero or a discount is not positive:
    without a discount the lower order has no say, and the unseen no probability.
    """
    n1, n2, n3, n4 = (int(np.count_nonzero(counts == count)) for count in (1, 2, 3, 4))
    discounts = _FALLBACK_DISCOUNTS
    if min(n1, n2, n3, n4) > 0:
        y = n1 / (n1 + 2 * n2)
        estimated = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        if min(estimated) > 0:
            discounts = estimated
    return np.array([0.0, *discounts])
