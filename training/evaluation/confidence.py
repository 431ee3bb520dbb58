"""The confidence of translations: fitted on one split, measured on others.

N hypotheses, F inputs of a map.
"""

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from service.bundle.confidence import (
    BEAM_SIZE,
    MAX_STEPS,
    Confidence,
    ConfidenceMap,
    ConfidenceStep,
    Coverage,
    MeasuredConfidence,
    Ranked,
)
from service.bundle.encoder_decoder import EncoderDecoderLimits
from service.bundle.manifest import Precision
from service.bundle.tokenization import Tokenizer
from training.data.pairs import PairSplit
from training.evaluation.beam_search import Steps, search
from training.evaluation.logistic import DECIMALS, Bools, Floats, Logistic, pooled_steps
from training.evaluation.reliability import (
    calibration_error,
    error_by_chance,
    reliability_bins,
    threshold_for,
)

# With fewer sources a map says little, and none is fitted.
LEAST_SOURCES = 100
MOST_SOURCES = 4000  # that a map is fitted on
WANTED = (0.9, 0.95, 0.99)
LENGTH_PENALTY = 1.0
_FOLDS = 5
_ROUNDS = 4  # of cross-validation, each with other folds
_LOG = logging.getLogger(__name__)
_INPUTS = ("odds", "margin", "score")
# The prior of intercept and weights: where the pairs say nothing, since all of them are right, the
# model's own probability is P(right). Mean log-probabilities are small, so their weight is large.
_PRIOR = np.array([0.0, 1.0, 0.0, 0.0])
_DEVIATIONS = np.array([1.0, 1.0, 1.0, 10.0])
# Inputs that a map may weigh: log-probability and margin, with or without the mean.
_CHOICES = ((0, 1), (0, 1, 2))


@dataclass(frozen=True, slots=True)
class Judged:
    """What a search found for one source, and which of it is right."""

    found: Sequence[Ranked]  # best first
    right: Sequence[bool]
    targets: int  # of the source
    rival: float  # nats of the strongest rival of the first


@dataclass(frozen=True, kw_only=True, slots=True)
class Judge:
    """Searches with a model as the service does by default, and compares with the targets."""

    steps: Steps
    precision: Precision  # of the steps
    source: Tokenizer
    target: Tokenizer
    limits: EncoderDecoderLimits
    beam_size: int = BEAM_SIZE

    def judged(self, references: Mapping[str, list[str]]) -> list[Judged]:
        """All hypotheses of the beam for each source; `references` are the targets of each."""
        sources = [self.source.encode(text) for text in references]
        found = search(
            self.steps,
            sources,
            beam_size=self.beam_size,
            num_hypotheses=self.beam_size,
            length_penalty=LENGTH_PENALTY,
            max_tokens=[self.limits.max_tokens(len(source) + 1) for source in sources],
        )
        return [
            Judged(
                [Ranked(x.logprob, len(x.tokens), x.finished) for x in each.hypotheses],
                [self.target.decode(x.tokens) in targets for x in each.hypotheses],
                len(targets),
                -math.inf if each.rival is None else each.rival,
            )
            for each, targets in zip(found, references.values(), strict=True)
        ]


def measured_confidence(
    judge: Judge, fitted: PairSplit, tests: Sequence[PairSplit]
) -> Confidence | None:
    """The map for a model's translations, fitted on one split and measured on others.

    None for too few sources; the log says so.
    """
    chosen = some_references(fitted)
    if len(chosen) < LEAST_SOURCES:
        _LOG.warning(
            "%s: translations get no confidence, which is fitted on %d sources at least",
            fitted.name,
            LEAST_SOURCES,
        )
        return None
    known = judge.judged(chosen)
    confidence = fit_confidence(known, fitted.name, judge.beam_size, judge.precision)
    measured = [
        measure_confidence(confidence, known, split.name, judge.judged(split.references))
        for split in tests
    ]
    return confidence.model_copy(update={"measured": measured})


def some_references(split: PairSplit) -> dict[str, list[str]]:
    """At most MOST_SOURCES sources with their targets, the first by SHA-256."""
    chosen = sorted(split.references, key=lambda x: hashlib.sha256(x.encode()).digest())
    return {source: split.references[source] for source in chosen[:MOST_SOURCES]}


def fit_confidence(
    judged: Sequence[Judged], split: str, beam_size: int, precision: Precision
) -> Confidence:
    """The map for a model's translations, without measurements."""
    return Confidence(
        precision=precision,
        split=split,
        sources=len(judged),
        targets=_rounded(sum(x.targets for x in judged) / len(judged)),
        beam_size=beam_size,
        length_penalty=LENGTH_PENALTY,
        best=_fitted(*_cases(judged, best=True)),
        others=_fitted(*_cases(judged, best=False)),
        measured=[],
    )


def measure_confidence(
    confidence: Confidence, known: Sequence[Judged], split: str, judged: Sequence[Judged]
) -> MeasuredConfidence:
    """How good it is on a held-out set; thresholds are taken from `known`, the pairs of the fit."""
    thresholds = [threshold_for(x, *_of_best(confidence, known)) for x in WANTED]
    values, right = _of_best(confidence, judged)
    others = [pair for x in judged for pair in _pairs(confidence, x)[1:]]
    return MeasuredConfidence(
        split=split,
        sources=len(judged),
        right=_rounded(right.mean()),
        ece=_rounded(calibration_error(values, right)),
        ece_by_chance=_rounded(error_by_chance(values)),
        others_ece=_rounded(
            calibration_error(np.array([x for x, _ in others]), np.array([y for _, y in others]))
        ),
        bins=reliability_bins(values, right),
        coverage=[
            _coverage(wanted, threshold, values, right)
            for wanted, threshold in zip(WANTED, thresholds, strict=True)
        ],
    )


def _coverage(wanted: float, threshold: float | None, values: Floats, right: Bools) -> Coverage:
    answered = values >= (np.inf if threshold is None else threshold)
    return Coverage(
        wanted=wanted,
        threshold=threshold,
        coverage=_rounded(answered.mean()),
        right=_rounded(right[answered].mean()) if answered.any() else None,
    )


def _pairs(confidence: Confidence, judged: Judged) -> Sequence[tuple[float, bool]]:
    return list(zip(confidence.values(judged.found, judged.rival), judged.right, strict=True))


def _of_best(confidence: Confidence, judged: Sequence[Judged]) -> tuple[Floats, Bools]:
    """Confidence [N] and right [N] of the best hypotheses."""
    pairs = [_pairs(confidence, x)[0] for x in judged]
    return np.array([x for x, _ in pairs]), np.array([y for _, y in pairs])


def _cases(judged: Sequence[Judged], *, best: bool) -> tuple[Floats, Bools]:
    """The inputs [N, F] of hypotheses that ended, the best or all others, and which are right."""
    inputs, right = [], []
    for each in judged:
        for place, (found, is_right) in enumerate(zip(each.found, each.right, strict=True)):
            if found.finished and (place == 0) is best:
                rival = each.found[0].logprob if place else each.rival
                inputs.append(found.inputs(found.logprob - rival))
                right.append(is_right)
    return np.array(inputs).reshape(-1, len(_INPUTS)), np.array(right, np.bool_)


def _fitted(inputs: Floats, right: Bools) -> ConfidenceMap:
    """The map with the least log loss in cross-validation: which inputs, and with or without steps.

    Of maps that are as good, the one with the fewest numbers.
    """
    generator = np.random.default_rng(0)
    folds = [generator.permutation(np.arange(len(right)) % _FOLDS) for _ in range(_ROUNDS)]
    choices = [_Choice(columns, stepped) for stepped in (False, True) for columns in _CHOICES]
    losses = [
        float(np.mean([choice.cross_validated(inputs, right, own) for own in folds]))
        for choice in choices
    ]
    best = int(np.argmin(np.round(losses, DECIMALS)))
    return choices[best].fitted(inputs, right, losses[best])


@dataclass(frozen=True, slots=True)
class _Choice:
    """A kind of map: which columns of the inputs it weighs, and whether steps follow."""

    columns: tuple[int, ...]
    stepped: bool

    def fitted(self, inputs: Floats, right: Bools, log_loss: float) -> ConfidenceMap:
        """The map that is fitted on all cases."""
        chosen = inputs[:, self.columns]
        logistic = self._logistic(chosen, right)
        weights = dict.fromkeys(_INPUTS, 0.0)
        for column, weight in zip(self.columns, logistic.weights.tolist(), strict=True):
            weights[_INPUTS[column]] = _rounded(weight)
        steps: list[ConfidenceStep] = []
        if self.stepped:
            points = pooled_steps(logistic.probs(chosen), right, MAX_STEPS)
            pairs = zip(*(x.tolist() for x in points), strict=True)
            steps = [ConfidenceStep(logistic=x, confidence=y) for x, y in pairs]
        return ConfidenceMap(
            intercept=_rounded(logistic.intercept),
            **weights,
            steps=steps,
            log_loss=_rounded(log_loss),
        )

    def _logistic(self, chosen: Floats, right: Bools) -> Logistic:
        places = [0, *(column + 1 for column in self.columns)]
        return Logistic.fit(chosen, right, _PRIOR[places], _DEVIATIONS[places])

    def cross_validated(
        self, inputs: Floats, right: Bools, folds: npt.NDArray[np.integer[Any]]
    ) -> float:
        """Mean nats of each fold by a map that is fitted on the others."""
        chosen = inputs[:, self.columns]
        nats = 0.0
        for fold in range(_FOLDS):
            own, rest = folds == fold, folds != fold
            logistic = self._logistic(chosen[rest], right[rest])
            probs = logistic.probs(chosen[own])
            if self.stepped:
                points = pooled_steps(logistic.probs(chosen[rest]), right[rest], MAX_STEPS)
                at, shares = (np.append(0.0, x) for x in points)
                probs = np.interp(probs, at, shares)
            nats -= float(np.log(np.where(right[own], probs, 1.0 - probs)).sum())
        return nats / max(1, len(right))


def _rounded(value: float) -> float:
    return round(float(value), DECIMALS)
