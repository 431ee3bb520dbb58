"""Where a text stands: against counting, and against the probabilities that intervals promise."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from service.bundle.percentiles import LengthRange, Percentiles
from service.tasks.percentiles import Standing, standing, wilson_interval
from training.evaluation.percentiles import length_range

TOLERANCE = 2e-3  # bits a character, within which two texts count as equally surprising
BITS = st.floats(0.0, 20.0, allow_subnormal=False)
MANY = st.lists(BITS, min_size=1, max_size=400)


def table_of(values: list[float], *, shift: float = 0.0) -> Percentiles:
    nats = np.array(values) * math.log(2)
    found = length_range(5, 9, nats, nats + shift * math.log(2))
    return Percentiles(split="test", texts="documents", lengths=[found])


def asked(table: Percentiles, bits_per_char: float, *, eos: bool = False) -> Standing:
    found = standing(table, chars=7, bits_per_char=bits_per_char, eos=eos)
    assert found is not None
    return found


@given(MANY, BITS)
def test_the_share_that_is_less_surprising_is_within_what_the_list_leaves_open(
    values: list[float], bits: float
) -> None:
    table = table_of(values)
    found, total = asked(table, bits), len(values)
    surely = sum(x < bits - TOLERANCE for x in values)
    perhaps = sum(x < bits + TOLERANCE for x in values)
    assert found.texts == total
    assert 0.0 <= found.low <= found.percentile <= found.high <= 100.0
    # The exact share's own interval overlaps the one that is given: the list only widens it.
    assert found.low <= 100.0 * wilson_interval(perhaps, total)[0] + 1e-9
    assert found.high >= 100.0 * wilson_interval(surely, total)[1] - 1e-9
    if len(table.lengths[0].ranks) == total:
        assert surely - 1e-6 <= found.percentile * total / 100.0 <= perhaps + 1e-6


@given(MANY, BITS, BITS)
def test_a_more_surprising_text_never_stands_lower(
    values: list[float], one: float, other: float
) -> None:
    table = table_of(values)
    low, high = (asked(table, x) for x in sorted((one, other)))
    assert low.percentile <= high.percentile
    assert low.low <= high.low
    assert low.high <= high.high


@given(MANY)
def test_a_copy_of_a_held_out_text_is_not_above_itself(values: list[float]) -> None:
    table = table_of(values)
    for value in (min(values), max(values)):
        # As another machine would compute it.
        found = asked(table, value * (1 + 1e-6))
        assert found.percentile <= 100.0 * sum(x < value for x in values) / len(values)


def test_both_ends_are_reached() -> None:
    table = table_of([2.0] * 50)
    assert asked(table, 1.9).percentile == 0.0
    assert asked(table, 2.1).percentile == 100.0
    assert asked(table, 2.1).high == 100.0
    assert 90.0 < asked(table, 2.1).low < 95.0


def test_the_end_has_a_table_of_its_own() -> None:
    table = table_of([1.0, 2.0, 3.0, 4.0], shift=2.0)
    assert asked(table, 3.5).percentile == 75.0
    assert asked(table, 3.5, eos=True).percentile == 25.0


def test_a_length_without_texts_has_no_percentile() -> None:
    table = table_of([1.0, 2.0])
    for chars in (4, 10):
        assert standing(table, chars=chars, bits_per_char=2.0, eos=False) is None
    assert standing(table, chars=0, bits_per_char=None, eos=False) is None


def test_each_length_has_its_own_texts() -> None:
    short, longer = np.array([8.0, 9.0]), np.array([1.0, 2.0])
    ranges: list[LengthRange] = [
        length_range(1, 4, short, short),
        length_range(5, 9, longer, longer),
    ]
    table = Percentiles(split="valid", texts="documents", lengths=ranges)
    found = [standing(table, chars=x, bits_per_char=6.0, eos=False) for x in (4, 5)]
    assert [x and x.percentile for x in found] == [0.0, 100.0]


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_an_interval_holds_its_share_and_mirrors_itself(counted: tuple[int, int]) -> None:
    count, total = counted
    low, high = wilson_interval(count, total)
    assert 0.0 <= low <= count / total <= high <= 1.0
    mirrored = wilson_interval(total - count, total)
    assert math.isclose(low, 1.0 - mirrored[1], abs_tol=1e-9)


def test_intervals_hold_the_truth_as_often_as_they_promise() -> None:
    """Exactly, by the binomial distribution; the mean over rates is what Wilson's is known for."""
    for total in (30, 100, 700):
        counts = np.arange(total + 1)
        bounds = np.array([wilson_interval(count, total) for count in counts.tolist()])
        held = []
        for rate in np.linspace(0.005, 0.995, 199):
            logs = [
                math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1)
                + k * math.log(rate) + (total - k) * math.log1p(-rate)
                for k in counts.tolist()
            ]  # fmt: skip
            within = (bounds[:, 0] <= rate) & (rate <= bounds[:, 1])
            held.append(float(np.exp(logs)[within].sum()))
        assert abs(np.mean(held) - 0.95) < 0.01
        assert min(held) > 0.83
