"""The probabilities of labels, one at each place of a text: independent, or a linear-chain CRF.

T places, L labels, N labelings. With a chain,

    p(y | x) ∝ exp(first[y_1] + Σ scores_i[y_i] + Σ transitions[y_i, y_i+1] + last[y_T])

(Lafferty, McCallum and Pereira, ICML 2001). Everything is summed exactly, in log space and float64.
A text is computed by itself, so that its bits do not depend on other texts.
"""

from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np

from service.bundle.arrays import Float32Array, Float64Array, Ids, Int64Array
from service.bundle.labeler import FORBIDDEN, LinearChain


@dataclass(frozen=True, slots=True)
class Labeling:
    """A label for each place."""

    labels: Ids  # [T]
    logprob: float  # nats


class Labelings(Protocol):
    """The probabilities of all labelings of one text."""

    @property
    def marginals(self) -> Float64Array:
        """log P of each label at each place, whatever the others have, [T, L]."""

    def best(self, count: int) -> list[Labeling]:
        """The likeliest labelings, likeliest first: fewer than `count` if there are fewer.

        No label is at a place that cannot have it.
        """

    def segment(self, start: int, labels: Ids) -> float:
        """log P that the places from `start` on have these labels, whatever the others have."""


@dataclass(frozen=True, slots=True)
class Chain:
    """The transitions of a linear chain."""

    transitions: Float64Array  # [L, L] from, to
    first: Float64Array  # [L]
    last: Float64Array  # [L]

    @classmethod
    def of(cls, chain: LinearChain) -> Self:
        """From a manifest."""
        return cls(*(np.array(x) for x in (chain.transitions, chain.first, chain.last)))


def labelings(scores: Float32Array, chain: Chain | None) -> Labelings:
    """All labelings of a text whose places have these `scores` [T, L].

    Without a chain, scores are log-probabilities, which the graph has normalized at each place.
    """
    exact = scores.astype(np.float64)
    return ByThemselves(exact) if chain is None else InChain(exact, chain)


class ByThemselves:
    """Places that do not depend on each other, as in a chain whose transitions are all zero."""

    def __init__(self, scores: Float64Array) -> None:
        self.marginals = scores

    def best(self, count: int) -> list[Labeling]:
        """See `Labelings`.

        A labeling that differs from the likeliest one at some place ranks behind all those that
        differ only at one other place, where that costs less. So for n labelings, it is enough to
        look at the n - 1 places where the second label costs least.
        """
        likeliest = self.marginals.argmax(axis=1).astype(np.uint16)  # [T]
        found = [likeliest]
        if count > 1 and self.marginals.shape[1] > 1:
            scores = _possible(self.marginals)
            top = -np.partition(-scores, 1, axis=1)[:, :2]  # [T, 2]
            costs = top[:, 0] - top[:, 1]  # [T]
            places = np.argsort(costs, kind="stable")[: count - 1]
            found = _varied(likeliest, places, scores[places], count)
        return _sorted([Labeling(x, self.segment(0, x)) for x in found])

    def segment(self, start: int, labels: Ids) -> float:
        """See `Labelings`."""
        places = np.arange(start, start + len(labels))
        return float(self.marginals[places, labels].sum())


class InChain:
    """Places whose labels depend on those of their neighbours."""

    def __init__(self, scores: Float64Array, chain: Chain) -> None:
        self._scores = scores
        self._chain = chain
        self._before = _before(scores, chain)  # [T, L] log mass of all that ends in a label
        self._after = _after(scores, chain)  # [T, L] log mass of all that follows a label
        # The mass of all labelings.
        self._log_z = float(_log_sum(self._before[-1] + chain.last)) if len(scores) else 0.0

    @property
    def marginals(self) -> Float64Array:
        """See `Labelings`."""
        # Rounding may put a sum above the mass of all labelings.
        return np.minimum(self._before + self._after - self._log_z, 0.0)

    def best(self, count: int) -> list[Labeling]:
        """See `Labelings`. The list form of Viterbi (Seshadri and Sundberg 1994)."""
        if not len(self._scores):
            return [Labeling(np.empty(0, np.uint16), 0.0)]
        sums, origins = self._searched(count)
        size = sums.shape[1]
        ends = (sums + self._chain.last[:, None]).ravel()  # [L · N]
        found = []
        for place in np.argsort(-ends, kind="stable")[:count].tolist():
            if not np.isfinite(ends[place]):
                break  # there are no more labelings
            labels = np.empty(len(self._scores), np.uint16)
            at = place
            for t in range(len(labels) - 1, -1, -1):
                labels[t] = at // size
                at = origins[t, at // size, at % size]
            found.append(Labeling(labels, self.segment(0, labels)))
        return _sorted(found)

    def segment(self, start: int, labels: Ids) -> float:
        """See `Labelings`."""
        if not len(labels):
            return 0.0
        end = start + len(labels)
        inside = self._scores[np.arange(start + 1, end), labels[1:]].sum()
        moves = self._chain.transitions[labels[:-1], labels[1:]].sum()
        outside = self._before[start, labels[0]] + self._after[end - 1, labels[-1]]
        return min(float(outside + inside + moves - self._log_z), 0.0)

    def _searched(self, count: int) -> tuple[Float64Array, Int64Array]:
        """The best labelings up to the last place, and where each comes from.

        The sums [L, N] of those that end in a label, best first; -inf if there are fewer. Origins
        [T, L, N] are places in the sums before, as one number.
        """
        size, scores = len(self._chain.first), _possible(self._scores)
        sums = np.full((size, count), -np.inf)
        sums[:, 0] = self._chain.first + scores[0]
        origins = np.zeros((len(self._scores), size, count), np.int64)
        for t in range(1, len(self._scores)):
            # [L · N from, L to]
            coming = np.repeat(self._chain.transitions, count, axis=0) + sums.reshape(-1, 1)
            best = _largest(coming, count)  # [N, L]
            origins[t] = best.T
            sums = np.take_along_axis(coming, best, axis=0).T + scores[t][:, None]
        return sums, origins


def _possible(scores: Float64Array) -> Float64Array:
    """The scores, with -inf for labels that a place cannot have."""
    return np.where(scores <= FORBIDDEN / 2, -np.inf, scores)


def _varied(likeliest: Ids, places: Int64Array, scores: Float64Array, count: int) -> list[Ids]:
    """The labelings with the least cost among those that differ at `places` [P] only.

    These places have the `scores` [P, L].
    """
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]  # [P, K]
    sorted_scores = np.take_along_axis(scores, order, axis=1)
    costs = np.zeros(1)  # [N]
    chosen = np.empty((1, 0), np.int64)  # [N, places so far]
    for labels, theirs in zip(order, sorted_scores, strict=True):
        sums = (costs[:, None] + (theirs[0] - theirs)).ravel()  # [N · K]
        least = np.argsort(sums, kind="stable")[:count]
        least = least[np.isfinite(sums[least])]
        before, choice = np.divmod(least, len(labels))
        costs = sums[least]
        chosen = np.column_stack([chosen[before], labels[choice]])
    found = np.repeat(likeliest[None], len(chosen), axis=0)
    found[:, places] = chosen
    return list(found)


def _largest(values: Float64Array, count: int) -> Int64Array:
    """Where the largest of each column are, largest first, [count, columns]."""
    if count == 1:
        likeliest: Int64Array = values.argmax(axis=0)
        return likeliest[None]
    if 8 * count < len(values):
        # Sorting all of them would take two or three times as long.
        found = np.sort(np.argpartition(-values, count - 1, axis=0)[:count], axis=0)
        order = _largest(np.take_along_axis(values, found, axis=0), len(found))
        return np.take_along_axis(found, order, axis=0)
    return np.argsort(-values, axis=0, kind="stable")[:count]


def _sorted(found: list[Labeling]) -> list[Labeling]:
    return sorted(found, key=lambda labeling: -labeling.logprob)


def _before(scores: Float64Array, chain: Chain) -> Float64Array:
    """The forward sums, [T, L], with the scores of their own places."""
    sums = scores.copy()
    for t in range(len(scores)):
        sums[t] += _log_sum(sums[t - 1][:, None] + chain.transitions) if t else chain.first
    return sums


def _after(scores: Float64Array, chain: Chain) -> Float64Array:
    """The backward sums, [T, L], without the scores of their own places."""
    sums = np.empty_like(scores)
    to_from = np.ascontiguousarray(chain.transitions.T)  # [to, from]
    for t in range(len(scores) - 1, -1, -1):
        if t == len(scores) - 1:
            sums[t] = chain.last
        else:
            sums[t] = _log_sum((scores[t + 1] + sums[t + 1])[:, None] + to_from)
    return sums


def _log_sum(values: Float64Array) -> Float64Array:
    """log Σ exp over axis 0."""
    most = values.max(axis=0)
    total: Float64Array = most + np.log(np.exp(values - most).sum(axis=0))
    return total
