"""How many guesses a text takes: the curve in a manifest, and its value for one text.

An attacker who tries texts from the likeliest down reaches the text t after 1 + R(t) guesses, where
R(t) is the number of texts that are likelier. It is estimated from n samples x_i of the model
(Dell'Amico and Filippone, Monte Carlo strength evaluation, CCS 2015):

    G(t) = sum over i with p(x_i) > p(t) of 1 / (n q(x_i))

p is what `/score` gives, with the end of the text. q is the probability of drawing x_i, which is a
little more than p: characters outside the vocabulary are never drawn. The variance of G is that of
a mean: with Y_i = 1 / q(x_i) where p(x_i) > p(t), else 0, it is s^2 = var(Y) / n.

The interval is a score interval (Wilson 1927) for a weighted count, w = 1 / (n p(t)) being the
largest weight in it: G + z^2 w / 2 +- z sqrt(s^2 + z^2 w^2 / 4), z = 1.96. It is close to
G +- 1.96 s if many samples are likelier than t, and does not collapse to a point if none is.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise
from operator import neg
from typing import Annotated, Self

from pydantic import Field, model_validator

from service.bundle.manifest import Record

MAX_GUESS_POINTS = 256
Z = 1.96  # of a 95 % interval
# Within these bounds, no number of a curve or of an answer overflows.
_MOST = 1e300
_MOST_COUNT = 2**53
_Logprob = Annotated[float, Field(ge=-600.0, le=0.0)]
_Number = Annotated[float, Field(ge=0.0, le=_MOST)]


@dataclass(frozen=True, slots=True)
class Guesses:
    """How many guesses a text takes, with a 95 % interval. `None`: beyond the end of the curve."""

    guesses: float | None
    low: float | None
    high: float | None


# A text that no guess is ever spent on: it has characters outside the vocabulary.
NEVER = Guesses(None, None, None)


class GuessCurve(Record):
    """Guess numbers of whole texts, estimated from samples of the model.

    The estimate is interpolated between points, in the logarithms of 1 + `guesses` and
    1 + `errors`. It ends where the standard error is a tenth of the estimate, or where the samples
    end.
    """

    samples: int = Field(gt=1, le=_MOST_COUNT, description="Texts drawn from the model.")
    max_chars: int = Field(
        gt=0, description="Only texts of at most this many characters are counted."
    )
    cut: int = Field(ge=0, description="Samples that were longer and are not counted.")
    logprobs: list[_Logprob] = Field(
        min_length=2,
        max_length=MAX_GUESS_POINTS,
        description="The points: log-probabilities of texts and their end, in nats, falling.",
    )
    guesses: list[_Number] = Field(
        description="At each point, the estimated number of likelier texts."
    )
    errors: list[_Number] = Field(description="At each point, the standard error of that number.")
    typical: float | None = Field(
        None,
        ge=1.0,
        description="The guesses that the median held-out text takes; null if that is beyond the "
        "last point.",
    )

    @model_validator(mode="after")
    def _points_are_whole(self) -> Self:
        if not len(self.logprobs) == len(self.guesses) == len(self.errors):
            raise ValueError("logprobs, guesses, errors: they must have the same length")
        if any(a <= b for a, b in pairwise(self.logprobs)):
            raise ValueError("logprobs: each is lower than the one before")
        if any(a > b for a, b in pairwise(self.guesses)):
            raise ValueError("guesses: none is lower than the one before")
        return self

    def of(self, logprob: float, chars: int) -> Guesses:
        """The guesses for a text of `logprob` (nats, its end counted) with that many characters.

        For a text longer than `max_chars`, or less likely than the last point, only a lower bound.
        """
        beyond = logprob < self.logprobs[-1]
        place = max(logprob, self.logprobs[-1])
        likelier, error = self._at(place)
        weight = math.exp(-place) / self.samples
        center = 1.0 + likelier + Z**2 * weight / 2.0
        reach = Z * math.hypot(error, Z * weight / 2.0)
        low = max(1.0, center - reach)
        if beyond or chars > self.max_chars:
            return Guesses(None, low, None)
        return Guesses(1.0 + likelier, low, center + reach)

    def _at(self, logprob: float) -> tuple[float, float]:
        """The number of likelier texts and its standard error, within the points."""
        after = bisect_left(self.logprobs, -logprob, key=neg)
        if after == 0:
            return self.guesses[0], self.errors[0]
        before = after - 1
        width = self.logprobs[before] - self.logprobs[after]
        share = (self.logprobs[before] - logprob) / width

        def between(values: list[float]) -> float:
            first, last = math.log1p(values[before]), math.log1p(values[after])
            return math.expm1(first + share * (last - first))

        return between(self.guesses), between(self.errors)
