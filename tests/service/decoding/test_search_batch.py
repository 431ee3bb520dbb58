"""Beams, samples and given targets, many sources at once: each as it would be alone."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from service.bundle.arrays import BoolArray, Float64Array, Ids
from service.bundle.text import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from service.decoding.choosers import Beams
from service.decoding.sampling import SamplingParams
from service.decoding.search import Search
from service.decoding.search_batch import SearchBatch
from service.decoding.search_rows import CYCLE_TOKENS, LONGEST_CYCLE
from service.runtime.encoder_decoder import EncoderDecoderSession
from service.runtime.runs import pad_sources
from service.scheduling.encoder_decoder import EncoderDecoderRunner
from tests.fakes import FakeEncoderDecoderSession
from tests.service.search_reference import (
    alone,
    beam_searches,
    found,
    given_searches,
    rival_of,
    sample_searches,
    searches,
    source_of,
    sources,
)

Source: TypeAlias = Ids

SOURCE = source_of([4, 5, 6, 7])


def batch_of(session: EncoderDecoderSession, chosen: Sequence[Search]) -> SearchBatch:
    """Sources of one padded length and one width, read together."""
    batch = SearchBatch(session, chosen[0].width)
    join(session, batch, chosen)
    return batch


def join(session: EncoderDecoderSession, batch: SearchBatch, chosen: Sequence[Search]) -> None:
    lengths = np.array([len(search.source) for search in chosen], np.int32)
    batch.add(chosen, session.encode(pad_sources([x.source for x in chosen]), lengths))


def run(session: EncoderDecoderSession, search: Search) -> Search:
    """The search, done."""
    batch = batch_of(session, [search])
    while batch.searches:
        _, failed = batch.run()
        assert not failed
    return search


def fresh(search: Search) -> Search:
    """The same search, not begun."""
    return replace(search, hypotheses=[], details=[], trace=[], position=0, noise=None, rival=None)


# --- alone and in company -------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(search=searches, levels=st.sampled_from([None, 1, 2, 3]))
def test_a_search_finds_what_its_description_finds(search: Search, levels: int | None) -> None:
    """Ties included: with few levels most candidates are as likely as others."""
    session = FakeEncoderDecoderSession(levels=levels)
    assert found(run(session, search)) == alone(session, search)


@settings(max_examples=100, deadline=None)
@given(
    search=beam_searches(),
    levels=st.sampled_from([None, 2, 3]),
    cycle=st.sampled_from([None, 3]),
    asked=st.integers(1, 4),
)
def test_the_rival_is_noted_when_nothing_can_beat_the_best_however_many_are_asked_for(
    search: Search, levels: int | None, cycle: int | None, asked: int
) -> None:
    session = FakeEncoderDecoderSession(levels=levels, cycle=cycle)
    other = replace(fresh(search), num_hypotheses=min(asked, search.width))
    assert run(session, search).rival == rival_of(session, search)
    assert run(session, other).rival == search.rival


# Searches that arrive together, one that is given up, or a step.
events = st.one_of(st.lists(searches, min_size=1, max_size=4), st.integers(0, 9), st.none())


@settings(max_examples=100, deadline=None)
@given(
    schedule=st.lists(events, min_size=1, max_size=16),
    levels=st.sampled_from([None, None, 2]),
    cycle=st.sampled_from([None, None, None, 2]),
)
def test_whoever_comes_and_goes_every_search_finds_what_it_finds_alone(
    schedule: list[list[Search] | int | None], levels: int | None, cycle: int | None
) -> None:
    session = FakeEncoderDecoderSession(levels=levels, cycle=cycle)
    runner = EncoderDecoderRunner(session, name="fake")
    held: list[Search] = []
    done: list[Search] = []

    def step() -> None:
        for search, error in runner.run():
            assert error is None
            held.remove(search)
            done.append(search)

    for event in schedule:
        if event is None:
            step()
        elif isinstance(event, list):
            coming = [fresh(search) for search in event]
            held += coming
            runner.admit(coming)
        elif event < len(held):
            runner.drop([held.pop(event)])
        assert runner.used_rows == sum(search.width for search in held)
    while held:
        step()
    assert runner.free
    for search in done:
        assert found(search) == alone(session, search)


@settings(max_examples=50, deadline=None)
@given(chosen=st.lists(given_searches(), min_size=1, max_size=4))
def test_the_details_of_a_given_target_are_its_own(chosen: list[Search]) -> None:
    session = FakeEncoderDecoderSession()
    runner = EncoderDecoderRunner(session, name="fake")
    runner.admit(chosen)
    while not runner.free:
        runner.run()
    for search in chosen:
        if search.detail_top is None:
            assert search.details == []
            continue
        alone_search = run(session, fresh(search))
        assert len(search.details) == len(search.forced)
        for ours, theirs in zip(search.details, alone_search.details, strict=True):
            for name in ("logprob", "entropy", "rank", "top_ids", "top_logprobs"):
                np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        picked = tuple(float(x.logprob[0]) for x in search.details)
        assert picked == search.hypotheses[0].token_logprobs
        assert all(x.top_ids.shape == (1, search.detail_top) for x in search.details)


# --- what a beam finds ----------------------------------------------------------------------------


def greedy(session: EncoderDecoderSession, source: Source, bound: int) -> tuple[int, ...]:
    """The likeliest token that has text, or the end, until the end."""
    encoded = session.encode(pad_sources([source]), np.array([len(source)], np.int32))
    states, tokens = encoded.states, [BOS_ID]
    while len(tokens) <= bound and tokens[-1] != EOS_ID:
        last = np.array(tokens[-1:])
        step = session.step(last, states, encoded.memory, attention=False)
        states, logprobs = step.states, step.logprobs[0].copy()
        logprobs[[PAD_ID, BOS_ID, UNK_ID]] = -np.inf
        tokens.append(int(logprobs.argmax()))
    return tuple(tokens[1:])


@settings(max_examples=50, deadline=None)
@given(source=sources, penalty=st.sampled_from([0.0, 1.0, 3.0]))
def test_a_beam_of_one_is_greedy(source: Source, penalty: float) -> None:
    """Whatever the penalty: it does not go on beside an ending to what may score better."""
    session = FakeEncoderDecoderSession()
    search = run(session, Search(source, 1, 20, length_penalty=penalty))
    assert search.best()[0].tokens == greedy(session, source, 20)


def test_a_beam_that_is_wide_enough_finds_the_likeliest_of_all_targets() -> None:
    session = FakeEncoderDecoderSession(vocab_size=6)
    longest = 5
    for first, second in itertools.product((4, 5), repeat=2):
        source = source_of([first, second])
        every = [
            (*tokens, EOS_ID)
            for length in range(longest)
            for tokens in itertools.product((4, 5), repeat=length)
        ]
        totals = {}
        for tokens in every:
            scored = run(session, Search(source, 1, len(tokens), forced=tokens, given=True))
            totals[tokens] = scored.hypotheses[0].logprob
        best = sorted(every, key=lambda x: -totals[x])[:3]
        wide = Search(source, 2**longest, longest, num_hypotheses=3, length_penalty=0.0)
        assert [x.tokens for x in run(session, wide).best()] == best
        assert [x.logprob for x in wide.best()] == [totals[x] for x in best]


def go_on(_: Beams, best: Float64Array, _floors: Float64Array) -> BoolArray:
    """No search is done before its limit, whatever it has found."""
    return np.zeros(best.shape, np.bool_)


@settings(max_examples=100, deadline=None)
@given(
    search=beam_searches(min_width=2),  # a beam of one is to stop where it ends
    levels=st.sampled_from([None, 2]),
    cycle=st.sampled_from([None, 3]),
)
def test_to_stop_early_never_changes_an_answer(
    search: Search, levels: int | None, cycle: int | None
) -> None:
    assume(search.width > 1)  # one beam is greedy, and does stop
    session = FakeEncoderDecoderSession(levels=levels, cycle=cycle)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Beams, "_is_beaten", go_on)
        patient = run(session, fresh(search))
    assert found(run(session, search)) == found(patient)


def test_a_search_stops_early_where_nothing_can_win() -> None:
    session = FakeEncoderDecoderSession()
    run(session, Search(SOURCE, 3, 500, length_penalty=0.0))
    assert len(session.sizes("step")) < 50


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0])
def test_hypotheses_come_best_score_first_and_those_that_ended_before_all_others(
    penalty: float,
) -> None:
    session = FakeEncoderDecoderSession()
    cut = 0
    for first in range(4, 10):
        search = Search(source_of([first]), 6, 4, num_hypotheses=6, length_penalty=penalty)
        best = run(session, search).best()
        ranks = [(x.finish_reason != "stop", -x.score(penalty)) for x in best]
        assert ranks == sorted(ranks)
        assert len({x.tokens for x in best}) == len(best) == 6
        cut += sum(x.finish_reason == "length" for x in best)
        for x in best:
            assert x.score(penalty) == x.logprob / math.pow(len(x.tokens), penalty)
            assert (x.tokens[-1] == EOS_ID) == (x.finish_reason == "stop")
    assert cut  # both kinds were there


@settings(max_examples=50, deadline=None)
@given(search=st.one_of(beam_searches(), sample_searches()))
def test_the_logprob_is_the_sum_in_order(search: Search) -> None:
    session = FakeEncoderDecoderSession()
    for hypothesis in run(session, search).best():
        total = 0.0
        for logprob in hypothesis.token_logprobs:
            total += logprob
        assert hypothesis.logprob == total
        assert len(hypothesis.tokens) == len(hypothesis.token_logprobs) <= search.max_tokens


@settings(max_examples=50, deadline=None)
@given(search=st.one_of(beam_searches(), sample_searches()))
def test_a_target_that_was_found_scores_the_same_when_it_is_given(search: Search) -> None:
    session = FakeEncoderDecoderSession()
    for hypothesis in run(session, search).best():
        forced = hypothesis.tokens
        again = Search(search.source, 1, len(forced), forced=forced, given=True)
        (scored,) = run(session, again).hypotheses
        assert scored.tokens == forced
        assert scored.token_logprobs == hypothesis.token_logprobs
        assert scored.logprob == hypothesis.logprob


@settings(max_examples=50, deadline=None)
@given(search=st.one_of(beam_searches(), sample_searches()))
def test_a_target_begins_with_its_prefix_and_has_no_token_without_text(search: Search) -> None:
    for hypothesis in run(FakeEncoderDecoderSession(), search).best():
        assert hypothesis.tokens[: len(search.forced)] == search.forced
        written = set(hypothesis.tokens[len(search.forced) :])
        assert not written & {PAD_ID, BOS_ID}
        assert search.writes_unknown or UNK_ID not in written


def test_the_unknown_token_is_written_where_it_may_be() -> None:
    session = FakeEncoderDecoderSession(vocab_size=5)  # of ordinary tokens there is one
    tokens = {
        token
        for first in range(4, 30)
        for x in run(
            session, Search(source_of([first]), 4, 8, num_hypotheses=4, writes_unknown=True)
        ).best()
        for token in x.tokens
    }
    assert tokens == {EOS_ID, UNK_ID, 4}


# --- how it ends ----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("cycle", range(1, LONGEST_CYCLE + 1))
def test_a_target_that_goes_round_ends(cycle: int, width: int) -> None:
    session = FakeEncoderDecoderSession(vocab_size=4 + LONGEST_CYCLE + 1, cycle=cycle)
    (best,) = run(session, Search(SOURCE, width, 500, length_penalty=0.0)).best()
    if best.finish_reason == "stop":  # of several beams one may have ended before
        assert width > 1
        return
    assert best.finish_reason == "repetition"
    span = max(CYCLE_TOKENS, 4 * cycle)
    assert len(best.tokens) == -(-span // 8) * 8
    assert best.tokens == tuple(4 + i % cycle for i in range(len(best.tokens)))


@pytest.mark.parametrize("params", [None, SamplingParams(temperature=0.1)])
def test_a_target_that_goes_round_too_slowly_goes_on(params: SamplingParams | None) -> None:
    session = FakeEncoderDecoderSession(vocab_size=4 + LONGEST_CYCLE + 1, cycle=LONGEST_CYCLE + 1)
    (best,) = run(session, Search(SOURCE, 1, 200, params=params)).best()
    assert (best.finish_reason, len(best.tokens)) == ("length", 200)


@pytest.mark.parametrize("params", [None, SamplingParams(temperature=0.1)])
def test_no_repetition_is_seen_before_24_tokens(params: SamplingParams | None) -> None:
    session = FakeEncoderDecoderSession(cycle=1)
    (best,) = run(session, Search(SOURCE, 1, 23, params=params)).best()
    assert (best.finish_reason, len(best.tokens)) == ("length", 23)
    (best,) = run(session, Search(SOURCE, 1, 24, params=params)).best()
    assert (best.finish_reason, len(best.tokens)) == ("repetition", 24)


def test_a_given_target_may_go_round() -> None:
    forced = (4,) * 60
    search = run(FakeEncoderDecoderSession(), Search(SOURCE, 1, 60, forced=forced, given=True))
    assert [(x.tokens, x.finish_reason) for x in search.hypotheses] == [(forced, "stop")]


def test_a_prefix_may_go_round() -> None:
    search = run(
        FakeEncoderDecoderSession(), Search(SOURCE, 2, 70, forced=(4,) * 40, length_penalty=0.0)
    )
    assert search.best()[0].tokens[:40] == (4,) * 40
    assert search.best()[0].finish_reason == "stop"


@pytest.mark.parametrize("params", [None, SamplingParams(temperature=0.1)])
@pytest.mark.parametrize("max_tokens", [1, 2, 7])
def test_a_target_that_does_not_end_is_cut(max_tokens: int, params: SamplingParams | None) -> None:
    (best,) = run(
        FakeEncoderDecoderSession(cycle=5), Search(SOURCE, 1, max_tokens, params=params)
    ).best()
    assert best.finish_reason == "length"
    assert best.tokens == tuple(4 + i % 5 for i in range(max_tokens))


# --- attention ------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(search=searches)
def test_every_token_has_the_weights_behind_it(search: Search) -> None:
    """The same as when its own tokens are given one by one."""
    session = FakeEncoderDecoderSession()
    search = replace(search, wants_attention=True)
    for hypothesis in run(session, search).best():
        forced = hypothesis.tokens
        again = Search(
            search.source, 1, len(forced), forced=forced, given=True, wants_attention=True
        )
        (expected,) = run(session, again).hypotheses
        assert hypothesis.attention is not None
        assert expected.attention is not None
        assert len(hypothesis.attention) == len(hypothesis.tokens)
        np.testing.assert_array_equal(hypothesis.attention, expected.attention)


def test_attention_is_not_kept_for_those_who_do_not_ask() -> None:
    session = FakeEncoderDecoderSession()
    asks, other = (Search(SOURCE, 2, 9, wants_attention=x) for x in (True, False))
    batch = batch_of(session, [asks, other])
    while batch.searches:
        batch.run()
    assert all(x.attention is not None for x in asks.hypotheses)
    assert other.trace == []
    assert all(x.attention is None for x in other.hypotheses)


# --- bounded --------------------------------------------------------------------------------------


def test_a_search_holds_no_more_hypotheses_than_it_answers() -> None:
    """A high penalty lets a search run to its limit, and targets end at every step."""
    session = FakeEncoderDecoderSession()
    search = Search(SOURCE, 8, 300, num_hypotheses=2, length_penalty=10.0)
    batch = batch_of(session, [search])
    while batch.searches:
        batch.run()
        assert len(search.hypotheses) <= 2 or not batch.searches
    assert len(session.sizes("step")) == 300
    assert found(search) == alone(session, search)


def test_a_trace_holds_nothing_of_other_sources() -> None:
    session = FakeEncoderDecoderSession()
    asks = Search(SOURCE, 2, 9, wants_attention=True)
    others = [Search(source_of([i]), 2, 9) for i in range(4, 9)]
    batch = batch_of(session, [asks, *others])
    batch.run()
    assert all(array.base is None for pair in asks.trace for array in pair)


# --- samples --------------------------------------------------------------------------------------


def samples(session: EncoderDecoderSession, choices: int, seed: int) -> list[tuple[int, ...]]:
    params = SamplingParams()
    search = Search(SOURCE, choices, 25, params=params, seed=seed, num_hypotheses=choices)
    return [x.tokens for x in run(session, search).best()]


def test_a_sample_is_its_seed_and_its_choice() -> None:
    session = FakeEncoderDecoderSession()
    five = samples(session, 5, seed=3)
    assert samples(session, 3, seed=3) == five[:3]
    assert samples(session, 5, seed=3) == five
    assert len(set(five)) == 5
    assert not set(samples(session, 5, seed=4)) & set(five)


def test_samples_are_drawn_with_the_probabilities_of_the_model() -> None:
    session = FakeEncoderDecoderSession(vocab_size=8)
    encoded = session.encode(pad_sources([SOURCE]), np.array([len(SOURCE)], np.int32))
    logprobs = session.step(
        np.array([BOS_ID]), encoded.states, encoded.memory, attention=False
    ).logprobs[0]
    probs = np.exp(logprobs.astype(np.float64))
    probs[[PAD_ID, BOS_ID, UNK_ID]] = 0.0
    probs /= probs.sum()
    count = 4000
    search = Search(SOURCE, count, 1, params=SamplingParams(), seed=1, num_hypotheses=count)
    drawn = np.bincount([x.tokens[0] for x in run(session, search).best()], minlength=8)
    # Five standard deviations of a binomial count.
    assert (np.abs(drawn - count * probs) <= 5 * np.sqrt(count * probs * (1 - probs)) + 1e-9).all()


def test_a_sample_that_reaches_a_second_block_of_noise_goes_on() -> None:
    session = FakeEncoderDecoderSession(vocab_size=40)
    search = Search(SOURCE, 2, 600, params=SamplingParams(temperature=3.0), seed=5)
    run(session, search)
    assert found(search) == alone(session, search)
