"""Insertions: fills that are drawn from what was compared, as tokens are."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.decoding.sampling import SamplingParams
from service.errors import InvalidRequest
from service.settings import Settings
from service.tasks.infill_values import Blanks, Fill, Infilled, InfillOptions
from service.tasks.insertions import Inserted, InsertOptions, inserted
from service.tasks.unknown import Unknown

GREEDY = SamplingParams(temperature=0.0)


class FakeInfills:
    """An engine that finds these fills, whatever stands around the blank."""

    def __init__(self, shares: dict[str, float]) -> None:
        ranked = sorted(shares.items(), key=lambda item: -item[1])
        self.fills = tuple(Fill((text,), -1.0, -2.0, share) for text, share in ranked)
        self.asked: list[InfillOptions] = []

    async def infill(self, texts: Sequence[Blanks], options: InfillOptions) -> list[Infilled]:
        """The same fills for every text."""
        self.asked.append(options)
        return [Infilled(self.fills, 9, 0.5, 1, Unknown(), 3, 40, 0) for _ in texts]


def insert(shares: dict[str, float], **options: Any) -> list[Inserted]:
    engine = cast("Any", FakeInfills(shares))
    texts = [Blanks(("a", "b"))] * 2
    return asyncio.run(inserted(engine, texts, InsertOptions(**options), Settings()))


def texts_of(shares: dict[str, float], **options: Any) -> list[str]:
    first, second = insert(shares, **options)
    # A draw depends on its seed and its place alone.
    assert first.choices == second.choices
    return [choice.text for choice in first.choices]


SHARES = {"cat": 0.5, "dog": 0.3, "hen": 0.15, "owl": 0.05}


@given(n=st.integers(1, 6))
def test_temperature_0_gives_the_likeliest_and_no_more_than_there_are(n: int) -> None:
    assert texts_of(SHARES, n=n, sampling=GREEDY) == ["cat", "dog", "hen", "owl"][:n]


@given(n=st.integers(1, 15), seed=st.integers(0, 2**63 - 1))
def test_a_choice_is_the_same_however_many_there_are(n: int, seed: int) -> None:
    whole = texts_of(SHARES, n=16, seed=seed)
    assert texts_of(SHARES, n=n, seed=seed) == whole[:n]
    assert texts_of(SHARES, n=16, seed=seed, sampling=SamplingParams(top_k=1)) == ["cat"] * 16
    assert set(texts_of(SHARES, n=16, seed=seed, sampling=SamplingParams(top_p=0.7))) <= {
        "cat",
        "dog",
    }


def test_a_fill_is_drawn_where_none_without_a_stop_string_has_a_chance() -> None:
    shares = {"a stop": 1.0, "cat": 0.0, "dog": 0.0}
    assert set(texts_of(shares, n=8, seed=1, stop=("stop",))) <= {"cat", "dog"}


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_fills_are_drawn_as_often_as_their_posterior_says(temperature: float) -> None:
    sampling = SamplingParams(temperature=temperature)
    found = Counter(
        text for seed in range(120) for text in texts_of(SHARES, n=16, seed=seed, sampling=sampling)
    )
    weights = np.array([share ** (1 / temperature) for share in SHARES.values()])
    expected = 120 * 16 * weights / weights.sum()
    counts = np.array([found[text] for text in SHARES])
    # Chi-squared with three degrees of freedom: 16.3 is its 99.9 % point.
    assert float(((counts - expected) ** 2 / expected).sum()) < 16.3


def test_a_fill_with_a_stop_string_is_left_out() -> None:
    assert texts_of(SHARES, n=3, sampling=GREEDY, stop=("a", "we")) == ["dog", "hen", "owl"]
    drawn = texts_of(SHARES, n=16, stop=("o", "e"), seed=1)
    assert drawn == ["cat"] * 16


def test_where_every_fill_has_one_it_is_cut_at_the_first() -> None:
    (found, _) = insert({"a cat": 0.7, "so\nit": 0.3}, n=2, sampling=GREEDY, stop=("\n", "t", " "))
    assert [(x.text, x.stop) for x in found.choices] == [("a", " "), ("so", "\n")]


@pytest.mark.parametrize("sampling", [GREEDY, SamplingParams()])
def test_where_nothing_fits_the_text_is_empty(sampling: SamplingParams) -> None:
    assert texts_of({}, n=2, sampling=sampling, stop=("a",)) == ["", ""]


def test_all_that_was_compared_is_asked_for() -> None:
    engine = FakeInfills(SHARES)
    options = InsertOptions(max_tokens=7, seed=5)
    asyncio.run(inserted(cast("Any", engine), [Blanks(("a", "b"))], options, Settings()))
    (asked,) = engine.asked
    assert (asked.max_tokens, asked.seed, asked.eos, asked.candidates) == (7, 5, False, None)
    assert asked.num_fills == Settings().max_choices


@pytest.mark.parametrize(
    ("option", "options"),
    [("n", {"n": 17}), ("stop", {"stop": ("",)}), ("stop", {"stop": ("a",) * 17})],
)
def test_limits_are_those_of_generate(option: str, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        insert(SHARES, **options)
    assert [error.option for error in refused.value.errors] == [option]
