"""Logistic regression with weights of at least 0, and steps that pool adjacent violators.

N cases with F inputs each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_ROUNDS = 100
_PRECISE = 1e-9  # nats over all cases
_SMALLEST_STEP = 1e-6
_LEAST_CASES = 25  # of a step
DECIMALS = 6  # of the numbers that a map keeps


@dataclass(frozen=True, slots=True)
class Logistic:
    """sigmoid(intercept + weights · inputs)."""

    intercept: float
    weights: Floats  # [F] each at least 0

    @classmethod
    def fit(cls, inputs: Floats, right: Bools, prior: Floats, deviations: Floats) -> "Logistic":
        """The likeliest for `inputs` [N, F]: projected Newton steps (Bertsekas 1982).

        Intercept and weights have normal priors with the means `prior` and these `deviations`,
        [1 + F]. The targets are Platt's (1999), (n₊ + 1) / (n₊ + 2) and 1 / (n₋ + 2): so it is
        never certain.
        """
        count = int(right.sum())
        targets = np.where(right, (count + 1) / (count + 2), 1.0 / (len(right) - count + 2))
        design = np.column_stack([np.ones(len(inputs)), inputs])  # [N, 1 + F]
        ridge = deviations**-2

        def loss(values: Floats) -> float:
            totals = design @ values
            fit = np.logaddexp(0.0, totals) - targets * totals
            return float(fit.sum() + (ridge * (values - prior) ** 2).sum() / 2.0)

        values = prior.copy()
        for _ in range(_ROUNDS):
            probs = _sigmoid(design @ values)
            slope = design.T @ (probs - targets) + ridge * (values - prior)
            curve = (design * (probs * (1.0 - probs))[:, None]).T @ design
            curve += np.diag(ridge)
            moves = (values > 0.0) | (slope < 0.0)  # a weight at 0 that would fall stays there
            moves[0] = True
            step = np.zeros_like(values)
            step[moves] = np.linalg.solve(curve[np.ix_(moves, moves)], slope[moves])
            after = _moved(values, step, loss)
            gained = loss(values) - loss(after)
            values = after
            if gained < _PRECISE:
                break
        return cls(float(values[0]), values[1:])

    def probs(self, inputs: Floats) -> Floats:
        """P(right) [N] for `inputs` [N, F]."""
        return _sigmoid(self.intercept + inputs @ self.weights)


def _moved(values: Floats, step: Floats, loss: Callable[[Floats], float]) -> Floats:
    """`values` less as much of the step as lowers the loss, with weights of at least 0."""
    before, size = loss(values), 1.0
    while size > _SMALLEST_STEP:
        after = values - size * step
        after[1:] = np.maximum(after[1:], 0.0)
        if loss(after) <= before:
            return after
        size /= 2.0
    return values


def pooled_steps(probs: Floats, right: Bools, most: int) -> tuple[Floats, Floats]:
    """At most `most` rising points (prob, share right) of cases, in groups of similar `probs` [N].

    Neighbours whose shares fall are pooled (Ayer et al. 1955). A share has half a case of each kind
    added, so that it is never certain.
    """
    order = np.argsort(probs, kind="stable")
    pools: list[tuple[float, float, int]] = []  # sum of probs, right, cases
    for places in np.array_split(order, max(1, min(most, len(order) // _LEAST_CASES))):
        pool = (float(probs[places].sum()), float(right[places].sum()), len(places))
        while pools and _share(pools[-1]) >= _share(pool):
            last = pools.pop()
            pool = (last[0] + pool[0], last[1] + pool[1], last[2] + pool[2])
        pools.append(pool)
    points = np.round([total / cases for total, _, cases in pools], DECIMALS)
    shares = np.array([round(_share(pool), DECIMALS) for pool in pools])
    rises = points > np.append(0.0, points[:-1])
    return points[rises], np.maximum.accumulate(shares)[rises]


def _share(pool: Sequence[float]) -> float:
    _, right, cases = pool
    return (right + 0.5) / (cases + 1.0)


def _sigmoid(totals: Floats) -> Floats:
    return np.asarray(np.exp(-np.logaddexp(0.0, -totals)))
