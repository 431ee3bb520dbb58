"""The clients that cost little send what they should and count what was answered."""

import itertools
import json
import os
import time

import pytest

from bench.load import cpu_s
from bench.plain_clients import BadAnswer, Head, connected, head_of, posts, texts
from tests.bench.sleeper import sleeper


def test_no_text_is_repeated_and_a_seed_gives_the_same_texts() -> None:
    found = list(itertools.islice(texts(20, 1), 2500))
    assert {len(text) for text in found} == {20}
    assert len(set(found)) == 2500
    assert found[:10] == list(itertools.islice(texts(20, 1), 10))
    assert not set(found) & set(itertools.islice(texts(20, 2), 2500))


def test_a_request_is_one_whole_post_with_the_length_of_its_body() -> None:
    (request,) = posts("http://127.0.0.1:81/score", iter([{"text": "ä"}]))
    head, _, body = request.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /score HTTP/1.1\r\nHost: 127.0.0.1:81\r\n")
    assert head.endswith(b"Content-Length: %d" % len(body))
    assert json.loads(body) == {"text": "ä"}


def test_a_span_counts_every_answer_and_keeps_as_many_going_as_there_are_clients() -> None:
    with sleeper(0.02) as (url, at_once):
        requests = posts(url, ({"number": number} for number in itertools.count()))
        with connected(url, requests, clients=5) as clients:
            span = clients.span(0.2, os.getpid())
    assert max(at_once) == 5
    assert span.answers == len(at_once) - 5  # without the first of each client
    assert min(span.latencies_s) >= 0.02
    assert span.seconds >= 0.2
    assert 0.0 < span.client_cpu_s <= span.server_cpu_s  # here, the server is in this process
    assert span.cpu_s_per_request == span.server_cpu_s / span.answers


def test_a_client_that_pauses_sends_less() -> None:
    with sleeper(0.0) as (url, at_once):
        requests = posts(url, ({"number": number} for number in itertools.count()))
        with connected(url, requests, clients=1) as clients:
            clients.span(0.1, os.getpid(), pause_s=0.03)
    assert len(at_once) <= 6


def test_a_head_is_read_once_it_is_whole() -> None:
    answer = b"HTTP/1.1 429 Too Many\r\nRetry-After: 1\r\ncontent-length: 20\r\n\r\nso far"
    for size in range(len(answer) - len(b"so far")):
        assert head_of(answer[:size]) == (None, 0)
    assert head_of(answer) == (Head(429, 20, has_retry_after=True), len(b"so far"))
    with pytest.raises(BadAnswer, match="Content-Length"):
        head_of(b"HTTP/1.1 200 OK\r\nServer: x\r\n\r\n")


def test_an_answer_that_is_no_200_ends_a_span() -> None:
    with sleeper(0.0, status=b"503 Busy") as (url, _):
        requests = posts(url, ({"number": number} for number in itertools.count()))
        with pytest.raises(BadAnswer, match="503"), connected(url, requests, clients=1):
            pass


def test_the_processor_time_of_a_process_is_finer_than_a_tick_of_the_clock() -> None:
    before, began = cpu_s(os.getpid()), time.process_time()
    while time.process_time() < began + 0.002:
        pass
    assert 0.002 <= cpu_s(os.getpid()) - before < 0.5
    assert cpu_s(None) == 0.0
