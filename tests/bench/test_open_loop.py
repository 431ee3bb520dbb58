"""The open loop sends in time, and its latencies are those of the server."""

import itertools
import os
import time
from collections.abc import Iterator

from bench.load import arrivals
from bench.open_loop import open_loop
from bench.plain_clients import posts
from tests.bench.sleeper import sleeper


def test_every_arrival_is_sent_and_its_answer_has_the_time_of_the_server() -> None:
    with sleeper(0.05) as (url, at_once):
        requests = posts(url, ({"number": number} for number in itertools.count()))
        run = open_loop(
            url, requests, rate_per_s=100.0, duration_s=0.4, connections=60, server_pid=os.getpid()
        )
    assert run.sent == len(run.answers) == len(at_once) == len(arrivals(100.0, 0.4))
    assert run.unsent == 0
    assert max(at_once) > 1
    assert all(0.05 <= x.latency_s < 10 for x in run.answers)
    assert all(x.status == 200 and not x.has_retry_after for x in run.answers)


def test_a_latency_ends_when_the_kernel_had_the_answer_and_not_when_the_client_looks() -> None:
    def bodies() -> Iterator[dict[str, object]]:
        yield {}
        time.sleep(0.2)  # as if another process had the processor
        yield from itertools.repeat({})

    with sleeper(0.0) as (url, _):
        run = open_loop(
            url,
            posts(url, bodies()),
            rate_per_s=200.0,
            duration_s=0.05,
            connections=20,
            server_pid=os.getpid(),
        )
    assert run.answers[0].latency_s < 0.15
    assert max(x.late_s for x in run.answers) > 0.15


def test_without_a_free_connection_a_request_is_not_sent_but_counted() -> None:
    with sleeper(0.2) as (url, at_once):
        requests = posts(url, ({"number": number} for number in itertools.count()))
        run = open_loop(
            url, requests, rate_per_s=100.0, duration_s=0.2, connections=2, server_pid=os.getpid()
        )
    assert run.unsent > 0
    assert run.sent + run.unsent == len(arrivals(100.0, 0.2))
    assert len(at_once) == run.sent == len(run.answers)
    assert max(at_once) == 2


def test_refusals_are_answers() -> None:
    with sleeper(0.0, status=b"429 Too Many Requests\r\nRetry-After: 1") as (url, _):
        requests = posts(url, ({"number": number} for number in itertools.count()))
        run = open_loop(
            url, requests, rate_per_s=100.0, duration_s=0.1, connections=9, server_pid=os.getpid()
        )
    assert {(x.status, x.has_retry_after) for x in run.answers} == {(429, True)}
