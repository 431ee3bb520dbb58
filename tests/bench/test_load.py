"""The arithmetic of the load generator, and a run of it against a server that sleeps."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.load import (
    LENGTHS,
    Answer,
    Endpoint,
    Request,
    Run,
    arrivals,
    closed_loop,
    mix,
    open_loop,
    percentile,
)
from tests.bench.sleeper import sleeper


def run_of(*spans: tuple[float, float, int], end: float = 10.0, status: int = 200) -> Run:
    """Answers by start, end and tokens, in a window from 0 on."""
    answers = [Answer(Request("", tokens, 0), a, b, status) for a, b, tokens in spans]
    return Run(answers, 0.0, end, server_cpu_s=5.0, client_cpu_s=1.0, server_memory_bytes=0)


@given(values=st.lists(st.floats(-1e6, 1e6), min_size=1), percent=st.floats(0.0, 100.0))
def test_a_percentile_is_a_value_that_so_many_do_not_exceed(
    values: list[float], percent: float
) -> None:
    found = percentile(values, percent)
    assert found in values
    assert sum(x <= found for x in values) >= percent / 100.0 * len(values) - 1e-9
    assert sum(x < found for x in values) <= percent / 100.0 * len(values)


def test_without_values_there_is_no_percentile() -> None:
    assert np.isnan(percentile([], 50))


def test_a_request_that_crosses_an_end_of_the_window_counts_with_its_share() -> None:
    assert run_of((0.0, 2.0, 20), (8.0, 12.0, 40)).tokens_per_s == pytest.approx((20 + 20) / 10)
    assert run_of((-1.0, 1.0, 20)).tokens_per_s == pytest.approx(1.0)
    assert run_of((11.0, 12.0, 20)).tokens_per_s == 0.0


def test_a_refused_request_has_no_tokens_and_no_latency() -> None:
    run = run_of((0.0, 1.0, 20), status=429)
    assert (run.refused, run.tokens_per_s, run.latencies_s()) == (1, 0.0, [])


def test_latencies_are_of_one_length_and_of_what_ended_in_the_window() -> None:
    run = run_of((0.0, 2.0, 8), (1.0, 2.0, 16), (9.5, 11.0, 8))
    assert run.latencies_s(8) == [2.0]
    assert sorted(run.latencies_s()) == [1.0, 2.0]
    assert run.cpu_s_per_1000_tokens() == pytest.approx(5.0 / (run.tokens_per_s * 10) * 1000)


def test_the_mix_has_every_length_equally_often_and_is_the_same_each_time() -> None:
    requests = mix(500)
    assert Counter(x.max_tokens for x in requests) == dict.fromkeys(LENGTHS, 100)
    assert all(8 <= len(x.prompt) <= 40 for x in requests)
    assert len({x.prompt for x in requests}) > 490
    assert requests == mix(500)
    assert requests != mix(500, seed=1)


def test_arrivals_are_a_poisson_process() -> None:
    times = arrivals(100.0, 50.0)
    gaps = np.diff([0.0, *times])
    assert (gaps >= 0).all()
    assert times[-1] < 50.0
    assert len(times) == pytest.approx(5000, rel=0.06)
    # Its gaps vary as much as they are long.
    assert np.std(gaps) == pytest.approx(np.mean(gaps), rel=0.06)


def test_a_closed_loop_keeps_as_many_requests_going_as_there_are_clients() -> None:
    with sleeper(0.02) as (url, at_once):
        endpoint = Endpoint(url, lambda request: request.prompt.encode())
        run = closed_loop(endpoint, mix(50), clients=5, duration_s=0.3, warm_up_s=0.05)
    assert max(at_once) == 5
    assert len(run.good) == len(at_once)
    assert all(x.latency_s >= 0.02 for x in run.good)


def test_an_open_loop_sends_whether_or_not_it_was_answered() -> None:
    with sleeper(0.2) as (url, at_once):
        endpoint = Endpoint(url, lambda request: request.prompt.encode())
        run = open_loop(endpoint, mix(50), rate_per_s=60.0, duration_s=0.4, warm_up_s=0.1)
    assert len(run.answers) == len(arrivals(60.0, 0.5))
    assert max(at_once) > 5


def test_a_closed_loop_is_warm_when_every_client_was_answered() -> None:
    # One after the other: each of 20 clients waits a second, four times as long as the window.
    with sleeper(0.05, at_once_at_most=1) as (url, _):
        endpoint = Endpoint(url, lambda request: request.prompt.encode())
        requests = mix(50, lengths=(10,))
        run = closed_loop(endpoint, requests, clients=20, duration_s=0.25, warm_up_s=0.05)
    assert run.tokens_per_s == pytest.approx(10 / 0.05, rel=0.2)
    assert percentile(run.latencies_s(), 50) == pytest.approx(1.0, rel=0.2)
