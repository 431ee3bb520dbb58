"""Confidences: calibration error by hand, thresholds, the fit, and what little data says."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle.confidence import MAX_STEPS, Ranked
from training.evaluation.confidence import Judged, fit_confidence, measure_confidence
from training.evaluation.logistic import Logistic, pooled_steps
from training.evaluation.reliability import (
    calibration_error,
    confidence_lines,
    error_by_chance,
    reliability_bins,
    threshold_for,
)

# Six answers: in three bins of two, (0.1, 0.2), (0.5, 0.7) and (0.9, 0.9).
CONFIDENCES = np.array([0.9, 0.1, 0.5, 0.2, 0.7, 0.9])
RIGHT = np.array([True, False, True, True, False, True])


def test_the_calibration_error_is_that_of_a_case_by_hand() -> None:
    # Means 0.15, 0.6 and 0.9; shares right 0.5, 0.5 and 1.
    assert calibration_error(CONFIDENCES, RIGHT, 3) == pytest.approx((0.35 + 0.1 + 0.1) / 3)
    bins = reliability_bins(CONFIDENCES, RIGHT, 3)
    assert [(x.sources, x.confidence, x.right) for x in bins] == [
        (2, 0.15, 0.5),
        (2, 0.6, 0.5),
        (2, 0.9, 1.0),
    ]
    # One bin: mean confidence 0.55, share right 2 / 3.
    assert calibration_error(CONFIDENCES, RIGHT, 1) == pytest.approx(4 / 6 - 0.55)
    variance = 2 * 0.09 + 0.09 + 0.25 + 0.16 + 0.21
    chance = math.sqrt(2 / math.pi) * math.sqrt(variance) / 6
    assert error_by_chance(CONFIDENCES, 1) == pytest.approx(chance)


def test_confidences_that_are_right_have_the_error_of_chance() -> None:
    rng = np.random.default_rng(3)
    confidences = rng.uniform(size=(200, 600))
    errors = [calibration_error(x, rng.uniform(size=600) < x) for x in confidences]
    expected = np.mean([error_by_chance(x) for x in confidences])
    assert np.mean(errors) == pytest.approx(expected, rel=0.05)


def test_fewer_answers_than_bins_are_a_bin_each() -> None:
    assert len(reliability_bins(CONFIDENCES[:2], RIGHT[:2])) == 2


def test_a_threshold_keeps_as_many_answers_as_it_can() -> None:
    # Sorted: 0.9 and 0.9 right, 0.7 wrong, 0.5 right, 0.2 right, 0.1 wrong.
    found = {x: threshold_for(x, CONFIDENCES, RIGHT) for x in (1.0, 0.8, 0.7, 0.5)}
    assert found == {1.0: 0.9, 0.8: 0.2, 0.7: 0.2, 0.5: 0.1}
    assert threshold_for(0.9, CONFIDENCES, ~RIGHT) is None


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 400))
def test_pooled_steps_rise_and_are_never_certain(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    probs = rng.uniform(size=count).round(2)
    right = rng.uniform(size=count) < probs
    points, shares = pooled_steps(probs, right, MAX_STEPS)
    assert len(points) == len(shares) <= MAX_STEPS
    assert (np.diff(points) > 0).all()
    assert (np.diff(shares) >= 0).all()
    assert ((shares > 0) & (shares < 1)).all()


def test_a_logistic_regression_finds_the_weights_and_keeps_them_at_0_or_more() -> None:
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(20_000, 3))
    totals = 0.5 + inputs @ np.array([1.5, 0.7, -0.8])
    right = rng.uniform(size=len(totals)) < 1 / (1 + np.exp(-totals))
    found = Logistic.fit(inputs[:, :2], right, np.zeros(3), np.full(3, 10.0))
    assert found.weights[0] / found.weights[1] == pytest.approx(1.5 / 0.7, rel=0.1)
    all_three = Logistic.fit(inputs, right, np.zeros(4), np.full(4, 10.0))
    assert all_three.weights[2] == 0.0
    assert all_three.weights[:2] == pytest.approx(found.weights, abs=1e-4)


def judged(rng: np.random.Generator, *, certain: bool = False) -> Judged:
    """A source whose two hypotheses are right as often as the model says, or always."""
    first = rng.uniform(0.97, 0.999) if certain else rng.uniform(0.5, 0.98)
    second = (1 - first) * 0.7
    draw = rng.uniform()
    return Judged(
        [Ranked(math.log(first), 4, finished=True), Ranked(math.log(second), 4, finished=True)],
        [certain or draw < first, not certain and first <= draw < first + second],
        1,
        math.log(second),
    )


def test_a_model_that_is_calibrated_stays_so_and_is_measured_on_other_sources() -> None:
    rng = np.random.default_rng(2)
    known, test = ([judged(rng) for _ in range(count)] for count in (600, 2000))
    confidence = fit_confidence(known, "valid", 5, "fp32")
    measured = measure_confidence(confidence, known, "test", test)
    assert measured.ece < 2 * measured.ece_by_chance
    assert measured.others_ece < 0.06
    assert measured.right == pytest.approx(np.mean([x.right[0] for x in test]), abs=1e-6)
    for point in measured.coverage[:2]:
        assert point.right is not None
        assert point.right == pytest.approx(point.wanted, abs=0.04)
    coverage = [x.coverage for x in measured.coverage]
    assert coverage == sorted(coverage, reverse=True)
    lines = confidence_lines(confidence.model_copy(update={"measured": [measured]}))
    assert lines[0].startswith(f"confidence, test: calibration error {measured.ece:.4f}")
    assert len(lines) == 4


def test_where_everything_was_right_the_model_s_own_doubt_still_counts() -> None:
    rng = np.random.default_rng(4)
    confidence = fit_confidence([judged(rng, certain=True) for _ in range(300)], "valid", 5, "fp32")
    sure, unsure = (Ranked(math.log(x), 4, finished=True) for x in (0.99, 0.001))
    assert confidence.values([sure], math.log(0.005))[0] > 0.97
    assert confidence.values([unsure], math.log(0.0005))[0] < 0.2


def test_no_confidence_has_no_lines() -> None:
    assert confidence_lines(None) == []
