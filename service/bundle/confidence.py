"""The confidence of a translation: a map from what the search found to P(right).

A hypothesis is right if its text is one of its source's targets. The map is a logistic regression
(Platt 1999) with weights of at least 0, so that it rises with each of its inputs. If held-out pairs
gain from it, isotonic steps follow (pool adjacent violators, Zadrozny and Elkan 2002).
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, NamedTuple, Self

from pydantic import Field, model_validator

from service.bundle.manifest import Precision, Record

# The beams of a search if a request names no number: the map is fitted on such searches.
BEAM_SIZE = 5
# The margin counts up to so many nats, and a log-probability up to just below 0.
MOST_MARGIN = 30.0
_MOST_LOGPROB = -1e-6
MAX_STEPS = 64
MAX_BINS = 15

_Share = Annotated[float, Field(ge=0.0, le=1.0)]
_Weight = Annotated[float, Field(ge=0.0)]


class Ranked(NamedTuple):
    """A hypothesis as a search ranks it, in training or in the service."""

    logprob: float  # nats, eos counted
    length: int  # tokens, eos counted
    finished: bool  # whether it ended by itself

    def inputs(self, margin: float) -> tuple[float, float, float]:
        """The inputs of a map: log-odds, margin and mean log-probability, each in nats."""
        logprob = min(self.logprob, _MOST_LOGPROB)
        odds = logprob - math.log(-math.expm1(logprob))
        margin = max(-MOST_MARGIN, min(margin, MOST_MARGIN))
        return odds, margin, self.logprob / max(1, self.length)


class ConfidenceStep(Record):
    """A point of the isotonic steps."""

    logistic: _Share = Field(description="Value of the logistic regression.")
    confidence: _Share = Field(description="P(right) there.")


_NOTHING = ConfidenceStep(logistic=0.0, confidence=0.0)


class ConfidenceMap(Record):
    """P(right) of a hypothesis: sigmoid(intercept + odds · … + margin · … + score · …)."""

    intercept: float = Field(description="Log-odds if all inputs are 0.")
    odds: _Weight = Field(description="Weight of log(p / (1 - p)), p = exp(logprob).")
    margin: _Weight = Field(
        description="Weight of the margin: the nats by which it beats its strongest rival, at most "
        f"{MOST_MARGIN:g}. For all but the best hypothesis: the nats by which it loses to the best "
        "one, below 0."
    )
    score: _Weight = Field(description="Weight of logprob / length, eos counted.")
    steps: list[ConfidenceStep] = Field(
        max_length=MAX_STEPS,
        description="Rising points between which P(right) is interpolated, starting from 0 at 0; "
        "beyond the last one its confidence holds. Empty if the regression's value is P(right).",
    )
    log_loss: float = Field(
        ge=0.0,
        description="Mean nats on the pairs it was fitted on, in five-fold cross-validation.",
    )

    @model_validator(mode="after")
    def _steps_rise(self) -> Self:
        for a, b in pairwise([_NOTHING, *self.steps]):
            if a.logistic >= b.logistic or a.confidence > b.confidence:
                raise ValueError("steps: they must rise")
        return self

    def value(self, hypothesis: Ranked, margin: float) -> float:
        """P(right) of a hypothesis with this margin."""
        odds, margin, score = hypothesis.inputs(margin)
        total = self.intercept + self.odds * odds + self.margin * margin + self.score * score
        # exp of a negative number cannot overflow.
        small = math.exp(-abs(total))
        return self._stepped((1.0 if total >= 0.0 else small) / (1.0 + small))

    def _stepped(self, logistic: float) -> float:
        steps = self.steps
        if not steps:
            return logistic
        after = bisect_left(steps, logistic, key=lambda step: step.logistic)
        if after == len(steps):
            return steps[-1].confidence
        low, high = steps[after - 1] if after else _NOTHING, steps[after]
        share = (logistic - low.logistic) / (high.logistic - low.logistic)
        return low.confidence + share * (high.confidence - low.confidence)


class ReliabilityBin(Record):
    """Sources whose best hypotheses have a similar confidence."""

    sources: int = Field(gt=0, description="How many there are.")
    confidence: _Share = Field(description="Their mean confidence.")
    right: _Share = Field(description="The share of them that are right.")


class Coverage(Record):
    """How much is still answered if less sure answers are left out (`min_confidence`)."""

    wanted: _Share = Field(description="The share of answers that should be right.")
    threshold: _Share | None = Field(
        description="The least confidence that achieves this on the pairs that the map was fitted "
        "on; null if there is none."
    )
    coverage: _Share = Field(description="The share of held-out sources that are still answered.")
    right: _Share | None = Field(description="The share of those that are right; null for none.")


class MeasuredConfidence(Record):
    """How good the confidence of best hypotheses is on a held-out set."""

    split: str = Field(description="`test`, `valid`, or the name of a further test set.")
    sources: int = Field(gt=0, description="Different sources in it.")
    right: _Share = Field(description="The share of them whose best hypothesis is right.")
    ece: _Share = Field(
        description="Expected calibration error (Naeini et al. 2015; Guo et al. 2017): the mean "
        f"distance between confidence and share right, in {MAX_BINS} equally full bins."
    )
    ece_by_chance: _Share = Field(
        description="The mean of this error if every confidence were exactly right: chance alone, "
        "with that many sources."
    )
    others_ece: _Share = Field(description="The error of all other hypotheses of the beam.")
    bins: list[ReliabilityBin] = Field(
        min_length=1, max_length=MAX_BINS, description="Least sure first."
    )
    coverage: list[Coverage] = Field(description="For 90, 95 and 99 % right.")


class Confidence(Record):
    """The confidence of translations, fitted on pairs that training has not learned from."""

    precision: Precision = Field(
        description="The precision of the graphs that translated the pairs."
    )
    split: str = Field(description="The pairs it was fitted on: `valid`, or a person's own.")
    sources: int = Field(gt=0, description="Different sources among them.")
    targets: float = Field(
        ge=1.0,
        description="Targets of a source, on average. The confidences of a source's hypotheses add "
        "up to at most this.",
    )
    beam_size: int = Field(
        gt=1, description="Beams of the searches; other searches have no confidence."
    )
    length_penalty: float = Field(description="Their length penalty; the same holds.")
    best: ConfidenceMap = Field(description="For the best hypothesis of a source.")
    others: ConfidenceMap = Field(description="For every other one.")
    measured: list[MeasuredConfidence] = Field(description="How good it is, on each held-out set.")

    def values(self, found: Sequence[Ranked], rival: float) -> list[float]:
        """P(right) of each hypothesis of a source, best first.

        `rival` is the log-probability of the strongest rival of the first one: the likeliest other
        candidate in the step of the search after which nothing could beat it. A hypothesis that
        did not end counts as wrong.
        """
        values: list[float] = []
        for each in found:
            value = 0.0
            if each.finished and values:
                value = self.others.value(each, each.logprob - found[0].logprob)
            elif each.finished:
                value = self.best.value(each, each.logprob - rival)
            values.append(max(0.0, min(value, self.targets - math.fsum(values))))
        return values
