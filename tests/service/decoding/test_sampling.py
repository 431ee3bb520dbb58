"""From log-probabilities to tokens: the rules, their extremes and the noise."""

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from service.bundle.arrays import Float32Array, Int64Array
from service.bundle.text import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from service.decoding.sampling import (
    LARGEST_UNIFORM,
    NOISE_BLOCK,
    Sampler,
    SamplingParams,
    noise_block,
)
from tests.fakes import sample

MASKED = {PAD_ID, BOS_ID, UNK_ID}
VOCAB = 11
Logprobs = Float32Array

several = settings(max_examples=50, deadline=None)


def as_logprobs(scores: list[float]) -> Logprobs:
    exact = np.array(scores, np.float64)
    exact -= exact.max()
    rounded: Logprobs = (exact - np.log(np.exp(exact).sum())).astype(np.float32)
    return rounded


logprobs = st.lists(st.floats(-30.0, 30.0, width=32), min_size=VOCAB, max_size=VOCAB).map(
    as_logprobs
)
uniforms = st.floats(0.0, LARGEST_UNIFORM) | st.sampled_from([0.0, LARGEST_UNIFORM])
temperatures = st.sampled_from([1e-9, 1e-3, 0.5, 1.0, 2.0, 1e9])
params = st.builds(
    SamplingParams,
    temperature=temperatures | st.just(0.0),
    top_k=st.none() | st.integers(1, 2 * VOCAB),
    top_p=st.floats(0.0, 1.0) | st.sampled_from([0.0, 1.0]),
    min_p=st.floats(0.0, 1.0) | st.sampled_from([0.0, 1.0]),
)


def one(row: Logprobs, how: SamplingParams, uniform: float) -> int:
    return int(sample(row[None], [how], np.array([uniform]))[0])


def over_a_grid(row: Logprobs, how: SamplingParams, size: int = 2000) -> Int64Array:
    """The tokens for `size` uniform numbers that lie evenly in [0, 1)."""
    uniform = (np.arange(size) + 0.5) / size
    return sample(np.repeat(row[None], size, axis=0), [how] * size, uniform)


def greedy(row: Logprobs) -> int:
    allowed = [i for i in range(len(row)) if i not in MASKED]
    return max(allowed, key=lambda i: (row[i], -i))


@several
@given(row=logprobs, uniform=uniforms, how=params)
def test_temperature_zero_takes_the_likeliest_whatever_the_filters(
    row: Logprobs, uniform: float, how: SamplingParams
) -> None:
    cold = SamplingParams(temperature=0.0, top_k=how.top_k, top_p=how.top_p, min_p=how.min_p)
    assert one(row, cold, uniform) == greedy(row)


@several
@given(row=logprobs, uniform=uniforms, temperature=temperatures)
def test_top_k_one_is_greedy_whatever_the_temperature(
    row: Logprobs, uniform: float, temperature: float
) -> None:
    assert one(row, SamplingParams(temperature=temperature, top_k=1), uniform) == greedy(row)


@several
@given(row=logprobs, uniform=uniforms, temperature=temperatures)
def test_top_p_zero_is_greedy_whatever_the_temperature(
    row: Logprobs, uniform: float, temperature: float
) -> None:
    assert one(row, SamplingParams(temperature=temperature, top_p=0.0), uniform) == greedy(row)


def test_top_k_takes_the_likeliest_even_where_the_temperature_makes_all_equal() -> None:
    row = as_logprobs([0.0] * VOCAB)
    row[7] = np.nextafter(row[7], np.float32(0.0))  # ahead by one bit
    assert one(row, SamplingParams(temperature=1e12, top_k=1), 0.99) == 7


def kept_tokens(row: Logprobs, how: SamplingParams) -> tuple[set[int], set[int]]:
    """By definition, token by token: those that surely stay, and those that may by rounding."""
    allowed = sorted(
        (i for i in range(len(row)) if i not in MASKED), key=lambda i: (-float(row[i]), i)
    )
    best = float(row[allowed[0]])
    weight = {i: float(np.exp((float(row[i]) - best) / how.temperature)) for i in allowed}
    ranked = allowed[: how.top_k]
    total = sum(weight[i] for i in ranked)
    surely, maybe = {ranked[0]}, {ranked[0]}
    before = weight[ranked[0]]
    for i in ranked[1:]:
        share = before / total
        if share < how.top_p + 1e-9 and weight[i] >= how.min_p - 1e-9:
            maybe.add(i)
        if share < how.top_p - 1e-9 and weight[i] >= how.min_p + 1e-9:
            surely.add(i)
        before += weight[i]
    return surely, maybe


@several
@given(row=logprobs, how=params)
def test_what_the_filters_cut_off_never_appears_and_what_they_keep_does(
    row: Logprobs, how: SamplingParams
) -> None:
    assume(how.temperature > 0.0)
    surely, maybe = kept_tokens(row, how)
    seen = set(over_a_grid(row, how).tolist())
    assert seen <= maybe
    best = max(float(row[i]) for i in maybe)
    weight = {i: float(np.exp((float(row[i]) - best) / how.temperature)) for i in maybe}
    likely = {i for i in surely if weight[i] > 2e-3 * sum(weight.values())}
    assert likely <= seen


@several
@given(row=logprobs, how=params)
def test_tokens_without_text_never_appear_but_eos_may(row: Logprobs, how: SamplingParams) -> None:
    row[sorted(MASKED)] = 0.0  # by far the likeliest
    assert not MASKED & set(over_a_grid(row, how, 50).tolist())
    row[:] = -20.0
    row[EOS_ID] = 0.0
    assert one(row, how, 0.5) == EOS_ID or how.temperature > 2.0


@several
@given(
    rows=st.lists(st.tuples(logprobs, params, uniforms), min_size=1, max_size=12),
    order=st.randoms(use_true_random=False),
)
def test_a_row_alone_is_the_row_in_any_batch(
    rows: list[tuple[Logprobs, SamplingParams, float]], order: random.Random
) -> None:
    order.shuffle(rows)
    together = sample(
        np.stack([row for row, _, _ in rows]),
        [how for _, how, _ in rows],
        np.array([uniform for _, _, uniform in rows]),
    )
    assert together.tolist() == [one(*row) for row in rows]


@several
@given(rows=st.lists(logprobs, min_size=1, max_size=4), how=params, uniform=uniforms)
def test_sampling_leaves_the_log_probabilities_alone(
    rows: list[Logprobs], how: SamplingParams, uniform: float
) -> None:
    stacked = np.stack(rows)
    before = stacked.copy()
    sample(stacked, [how] * len(rows), np.full(len(rows), uniform))
    assert stacked.tobytes() == before.tobytes()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("top_k", [None, VOCAB])
def test_the_share_of_each_token_is_its_probability(temperature: float, top_k: int | None) -> None:
    row = as_logprobs(np.random.default_rng(1).normal(scale=2.0, size=VOCAB).tolist())
    size = 20_000
    how = SamplingParams(temperature=temperature, top_k=top_k)
    counts = np.bincount(over_a_grid(row, how, size), minlength=VOCAB)
    weight = np.exp(row.astype(np.float64) / temperature)
    weight[sorted(MASKED)] = 0.0
    # A token holds one interval, and an even grid meets it to within one point.
    np.testing.assert_allclose(counts / size, weight / weight.sum(), atol=1.01 / size)


def test_a_tiny_temperature_is_greedy_and_a_huge_one_uniform() -> None:
    row = as_logprobs([0.0, 0.0, 1.0, 0.0, 3.0, 2.0, -5.0, 0.5, 0.1, -1.0, 2.9])
    assert set(over_a_grid(row, SamplingParams(temperature=1e-9)).tolist()) == {4}
    assert set(over_a_grid(row, SamplingParams(temperature=5e-324)).tolist()) == {4}
    counts = np.bincount(over_a_grid(row, SamplingParams(temperature=1e9), 8000))
    assert np.abs(counts[[2, *range(4, 11)]] - 1000).max() <= 1


def test_min_p_one_keeps_ties_with_the_likeliest() -> None:
    row = as_logprobs([0.0, 0.0, 1.0, 0.0, 3.0, 2.0, 3.0, 0.5, 0.1, -1.0, 2.9])
    assert set(over_a_grid(row, SamplingParams(min_p=1.0)).tolist()) == {4, 6}


def test_top_p_is_taken_of_what_top_k_leaves() -> None:
    row = np.log(np.array([0, 0, 0.4, 0, 0.3, 0.2, 0.1], np.float32) + np.float32(1e-30))
    both = SamplingParams(top_k=2, top_p=0.55)  # 0.4 / 0.7 > 0.55
    assert set(over_a_grid(row, both).tolist()) == {2}
    alone = SamplingParams(top_p=0.55)
    assert set(over_a_grid(row, alone).tolist()) == {2, 4}


@pytest.mark.parametrize(
    "how", [SamplingParams(), SamplingParams(top_k=3), SamplingParams(top_p=0.9)]
)
def test_noise_at_both_ends_gives_a_token_that_can_occur(how: SamplingParams) -> None:
    row = np.full(VOCAB, -1000.0, np.float32)
    row[[5, 8]] = np.log(np.float32(0.5))
    assert one(row, how, 0.0) == 5
    assert one(row, how, 1.0 - 2.0**-53) == 8


def test_the_noise_is_the_one_that_was_first_released() -> None:
    """Known answers: a seed that someone wrote down keeps its text."""
    known = [
        (
            0,
            0,
            0,
            [0.011546754286331562, 0.24154919656271812, 0.11142585551493822, 0.5662305036646382],
        ),
        (1, 0, 0, [0.3035680343067586, 0.8487087496857769, 0.1561347780434731, 0.3177086289424451]),
        (
            2**63 - 1,
            15,
            3,
            [0.06186249779506259, 0.03136278982104401, 0.8740317674752358, 0.0872014775513189],
        ),
    ]
    for seed, choice, block, expected in known:
        assert noise_block(seed, choice, block)[[0, 1, 2, 255]].tolist() == expected


def test_blocks_of_noise_join_without_a_seam() -> None:
    generator = np.random.Philox(key=np.array([7, 3], np.uint64), counter=[0, 0, 0, 0])
    stream = (generator.random_raw(4 * NOISE_BLOCK) >> np.uint64(11)) * 2.0**-53
    joined = np.concatenate([noise_block(7, 3, block) for block in range(4)])
    assert joined.tobytes() == stream.tobytes()
    assert len(set(joined.tolist())) == 4 * NOISE_BLOCK


@several
@given(
    keys=st.sets(
        st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 64), st.integers(0, 100)),
        min_size=2,
        max_size=5,
    )
)
def test_different_seeds_choices_and_blocks_have_different_noise(
    keys: set[tuple[int, int, int]],
) -> None:
    blocks = [noise_block(*key) for key in keys]
    assert all(block.shape == (NOISE_BLOCK,) for block in blocks)
    assert all(block.min() >= 0.0 and block.max() < 1.0 for block in blocks)
    assert len({block.tobytes() for block in blocks}) == len(keys)


def test_the_noise_of_many_seeds_is_uniform() -> None:
    draws = np.concatenate([noise_block(seed, 0, 0) for seed in range(400)])
    counts = np.histogram(draws, bins=64, range=(0.0, 1.0))[0]
    expected = len(draws) / 64
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 115.0  # 63 degrees of freedom: 1 in 10,000, and the draw is fixed


# --- bias and penalties --------------------------------------------------------------------------

adjusting = st.builds(
    SamplingParams,
    logit_bias=st.lists(
        st.tuples(st.sampled_from([EOS_ID, *range(4, VOCAB)]), st.floats(-50.0, 50.0)), max_size=3
    ).map(lambda pairs: tuple(dict(pairs).items())),
    presence_penalty=st.floats(-5.0, 5.0),
    frequency_penalty=st.floats(-5.0, 5.0),
    temperature=temperatures | st.just(0.0),
    top_k=st.none() | st.integers(1, VOCAB),
    top_p=st.floats(0.0, 1.0),
)
tallies = st.lists(st.integers(0, 4), min_size=VOCAB, max_size=VOCAB)


def with_counts(
    rows: Logprobs, how: list[SamplingParams], uniform: list[float], counts: list[list[int]]
) -> list[int]:
    sampler = Sampler(how, VOCAB)
    kept = np.array([counts[i] for i in sampler.adjusted], np.int64).reshape(-1, VOCAB)
    chosen: list[int] = sampler.choose(rows, np.array(uniform), kept).tolist()
    return chosen


@several
@given(row=logprobs, how=adjusting, uniform=uniforms, counts=tallies)
def test_bias_and_penalties_are_added_to_the_log_probabilities(
    row: Logprobs, how: SamplingParams, uniform: float, counts: list[int]
) -> None:
    """By their definition: the same as without them on scores that were changed before."""
    changed = row.astype(np.float64)
    for token, gain in how.logit_bias:
        changed[token] += gain
    for token, times in enumerate(counts):
        changed[token] -= how.frequency_penalty * times + how.presence_penalty * (times > 0)
    greedy_how = replace(how, temperature=0.0)
    allowed = [i for i in range(VOCAB) if i not in MASKED]
    (chosen,) = with_counts(row[None], [greedy_how], [uniform], [counts])
    assert changed[chosen] == pytest.approx(max(changed[allowed]), abs=1e-9)


@several
@given(row=logprobs, how=adjusting, uniform=uniforms, counts=tallies)
def test_temperature_and_filters_see_the_adjusted_log_probabilities(
    row: Logprobs, how: SamplingParams, uniform: float, counts: list[int]
) -> None:
    seen = np.array(counts)
    bias = np.zeros(VOCAB)
    for token, gain in how.logit_bias:
        bias[token] = gain
    penalty = how.frequency_penalty * seen + how.presence_penalty * (seen > 0)
    changed: Any = row.astype(np.float64) + (bias - penalty)
    plain = replace(how, logit_bias=(), frequency_penalty=0.0, presence_penalty=0.0)
    assert with_counts(row[None], [how], [uniform], [counts]) == [one(changed, plain, uniform)]


def test_a_bias_of_a_thousand_takes_the_token_and_of_minus_a_thousand_never() -> None:
    row = as_logprobs([0.0] * VOCAB)
    for temperature in (0.0, 1.0, 5.0):
        wanted = SamplingParams(temperature=temperature, logit_bias=((7, 1000.0),))
        unwanted = SamplingParams(temperature=temperature, logit_bias=((7, -1000.0),))
        assert set(over_a_grid(row, wanted).tolist()) == {7}
        assert 7 not in set(over_a_grid(row, unwanted).tolist())


@several
@given(
    rows=st.lists(
        st.tuples(logprobs, st.one_of(params, adjusting), uniforms, tallies), min_size=1, max_size=7
    )
)
def test_a_row_never_depends_on_what_other_rows_ask_for(
    rows: list[tuple[Logprobs, SamplingParams, float, list[int]]],
) -> None:
    stacked = np.stack([row for row, *_ in rows])
    together = with_counts(
        stacked, [how for _, how, _, _ in rows], [u for *_, u, _ in rows], [c for *_, c in rows]
    )
    alone = [with_counts(row[None], [how], [u], [c])[0] for row, how, u, c in rows]
    assert together == alone


def test_noise_stays_where_inverting_always_ends_at_a_token() -> None:
    drawn = np.concatenate([noise_block(seed, 0, 0) for seed in range(50)])
    assert drawn.min() >= 0.0
    assert drawn.max() <= LARGEST_UNIFORM
    last = as_logprobs([-30.0] * (VOCAB - 1) + [0.0])
    assert one(last, SamplingParams(), LARGEST_UNIFORM) == VOCAB - 1
    first = as_logprobs([-30.0] * 4 + [0.0] + [-80.0] * (VOCAB - 5))
    assert one(first, SamplingParams(), LARGEST_UNIFORM) < VOCAB
