"""The model beside its best floor, in words."""

import pytest

from service.bundle.language_model import LanguageModelMeasurement
from training.evaluation.language_model_report import compared


@pytest.mark.parametrize(
    ("saved", "error", "said"),
    [
        (0.3, 0.05, "the model is 15 % better (± 2.5)"),
        (0.06, 0.05, "may be chance"),
        (-0.2, 0.05, "which is 11 % better than the model"),
        (0.2, None, "too little text to rule out chance"),
    ],
)
def test_a_comparison_says_who_is_better_or_that_it_may_be_chance(
    saved: float, error: float | None, said: str
) -> None:
    mine = 2.0 - max(0.0, saved)
    floor = LanguageModelMeasurement(
        name="kneser-ney 5-gram",
        kind="baseline",
        loss=1.0,
        bits_per_char=mine + saved,
        perplexity=2.7,
        difference_error=error,
    )
    assert said in compared(mine, floor)
