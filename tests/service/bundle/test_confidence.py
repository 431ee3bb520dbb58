"""The map of confidence: it rises with what it weighs, and siblings share what there is."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from service.bundle.confidence import Confidence, ConfidenceMap, Ranked
from tests.bundles import CONFIDENCE

logprobs = st.floats(-300.0, 0.0)
margins = st.floats(-300.0, 300.0) | st.just(math.inf)
lengths = st.integers(1, 200)
shares = st.floats(0.0, 1.0)


@st.composite
def maps(draw: st.DrawFn) -> ConfidenceMap:
    weights = st.floats(0.0, 10.0)
    points = sorted(draw(st.sets(st.integers(1, 1000), max_size=6)))
    heights = sorted(draw(st.lists(shares, min_size=len(points), max_size=len(points))))
    return ConfidenceMap.model_validate(
        {
            "intercept": draw(st.floats(-10.0, 10.0)),
            "odds": draw(weights),
            "margin": draw(weights),
            "score": draw(weights),
            "steps": [
                {"logistic": x / 1000, "confidence": y}
                for x, y in zip(points, heights, strict=True)
            ],
            "log_loss": 0.0,
        }
    )


@settings(max_examples=200, deadline=None)
@given(maps(), st.tuples(logprobs, logprobs), st.tuples(margins, margins), lengths)
def test_a_map_rises_with_log_probability_and_with_margin(
    made: ConfidenceMap, nats: tuple[float, float], apart: tuple[float, float], length: int
) -> None:
    (low, high), (less, more) = sorted(nats), sorted(apart)
    value = made.value(Ranked(low, length, finished=True), less)
    assert 0.0 <= value <= 1.0
    assert value <= made.value(Ranked(high, length, finished=True), less) + 1e-12
    assert value <= made.value(Ranked(low, length, finished=True), more) + 1e-12


@settings(max_examples=200, deadline=None)
@given(
    maps(),
    maps(),
    st.floats(1.0, 2.0),
    st.lists(st.tuples(logprobs, lengths, st.booleans()), min_size=1, max_size=8),
    logprobs | st.just(-math.inf),
)
def test_siblings_add_up_to_the_targets_of_a_source_at_most(
    best: ConfidenceMap,
    others: ConfidenceMap,
    targets: float,
    found: list[tuple[float, int, bool]],
    rival: float,
) -> None:
    confidence = CONFIDENCE.model_copy(update={"best": best, "others": others, "targets": targets})
    ranked = [Ranked(*x) for x in found]
    values = confidence.values(ranked, rival)
    assert all(0.0 <= x <= 1.0 for x in values)
    assert math.fsum(values) <= targets + 1e-12
    assert all(x == 0.0 for x, each in zip(values, ranked, strict=True) if not each.finished)
    # Those that are left out later change nothing.
    assert confidence.values(ranked[:1], rival) == values[:1]


def test_the_model_s_own_probability_comes_back_where_its_log_odds_alone_count() -> None:
    plain = ConfidenceMap(intercept=0.0, odds=1.0, margin=0.0, score=0.0, steps=[], log_loss=0.0)
    for probability in (0.9, 0.5, 1e-9):
        ranked = Ranked(math.log(probability), 3, finished=True)
        assert plain.value(ranked, 1.0) == pytest.approx(probability)
    assert 0.999 < plain.value(Ranked(0.0, 1, finished=True), 1.0) < 1.0


def test_steps_are_points_that_values_lie_between() -> None:
    plain = {"intercept": 0.0, "odds": 1.0, "margin": 0.0, "score": 0.0, "log_loss": 0.0}
    steps = [{"logistic": 0.4, "confidence": 0.2}, {"logistic": 0.8, "confidence": 0.9}]
    made = ConfidenceMap.model_validate({**plain, "steps": steps})
    given_and_found = {0.2: 0.1, 0.4: 0.2, 0.6: 0.55, 0.8: 0.9, 0.99: 0.9}
    for probability, expected in given_and_found.items():
        ranked = Ranked(math.log(probability), 1, finished=True)
        assert made.value(ranked, 0.0) == pytest.approx(expected)


@pytest.mark.parametrize(
    "steps",
    [
        [{"logistic": 0.0, "confidence": 0.1}],
        [{"logistic": 0.5, "confidence": 0.1}, {"logistic": 0.5, "confidence": 0.2}],
        [{"logistic": 0.4, "confidence": 0.2}, {"logistic": 0.5, "confidence": 0.1}],
    ],
)
def test_steps_that_do_not_rise_are_no_map(steps: list[dict[str, float]]) -> None:
    document = CONFIDENCE.best.model_dump() | {"steps": steps}
    with pytest.raises(ValidationError, match="they must rise"):
        ConfidenceMap.model_validate(document)


def test_a_weight_below_0_is_no_map() -> None:
    for weight in ("odds", "margin", "score"):
        with pytest.raises(ValidationError, match="greater than or equal to 0"):
            ConfidenceMap.model_validate(CONFIDENCE.best.model_dump() | {weight: -0.1})


def test_a_confidence_reads_back_as_it_was() -> None:
    assert Confidence.model_validate_json(CONFIDENCE.model_dump_json()) == CONFIDENCE
    assert all(a.logistic < b.logistic for a, b in itertools.pairwise(CONFIDENCE.best.steps))
