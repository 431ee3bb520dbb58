"""What a guess curve in a manifest may say: every answer that is taken from it is a number."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.bundle.guesses import GuessCurve

CURVE: dict[str, Any] = {
    "samples": 1000,
    "max_chars": 20,
    "cut": 0,
    "logprobs": [-1.0, -5.0],
    "guesses": [0.0, 40.0],
    "errors": [0.0, 2.0],
}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("samples", 1),
        ("samples", 10**400),
        ("logprobs", [-1.0]),
        ("logprobs", [-5.0, -1.0]),
        ("logprobs", [0.5, -1.0]),
        ("logprobs", [-1.0, -1000.0]),  # exp(1000) is no number
        ("guesses", [0.0]),
        ("guesses", [2.0, 1.0]),
        ("guesses", [0.0, 1.7e308]),
        ("errors", [0.0, -1.0]),
        ("errors", [0.0, 1.7e308]),
        ("errors", [0.0, math.nan]),
    ],
)
def test_a_curve_that_cannot_be_is_refused(field: str, value: Any) -> None:
    GuessCurve(**CURVE)
    with pytest.raises(ValidationError, match=field):
        GuessCurve(**CURVE | {field: value})


@given(st.floats(-2000.0, 0.0), st.integers(0, 40))
def test_the_answers_of_the_most_extreme_curve_are_numbers(logprob: float, chars: int) -> None:
    extreme = {"logprobs": [0.0, -600.0], "guesses": [0.0, 1e300], "errors": [1e300, 1e300]}
    found = GuessCurve(**CURVE | extreme | {"samples": 2}).of(logprob, chars)
    values = [x for x in (found.low, found.guesses, found.high) if x is not None]
    assert all(map(math.isfinite, values))
    assert values == sorted(values)
