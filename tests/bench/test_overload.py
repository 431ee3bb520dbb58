"""The overload's figures: what is counted, and what fails."""

from collections.abc import Mapping

import pytest

from bench.open_loop import Answer, OpenRun
from bench.overload import Figure, judged


def figures_of(*answers: Answer, unsent: int = 0) -> Mapping[str, Figure]:
    """The figures of these answers in ten seconds, with a bound of half a second."""
    run = OpenRun(answers, len(answers), unsent, 10.0, server_cpu_s=15.0, client_cpu_s=1.0)
    return {figure.row.name: figure for figure in judged(run, 0.5)}


def failed(figures: Mapping[str, Figure]) -> set[str]:
    return {name for name, figure in figures.items() if figure.good is False}


ACCEPTED = Answer(200, 0.4, 0.001, has_retry_after=False)
REFUSED = Answer(429, 0.01, 0.003, has_retry_after=True)
LATE = Answer(429, 0.03, 0.003, has_retry_after=True)


def test_a_good_run_passes_with_one_slow_refusal_in_a_hundred() -> None:
    figures = figures_of(*[ACCEPTED] * 10, *[REFUSED] * 99, LATE)
    assert not failed(figures)
    assert figures["offered"].row.value == 11
    assert figures["processors of the server"].row.value == 1.5
    assert figures["refused, p100"].row.value == pytest.approx(30)
    assert figures["accepted, p99 over its bound"].row.value == pytest.approx(0.8)
    assert figures["sent later than planned, p50"].row.value == pytest.approx(3)


def test_each_promise_that_is_broken_fails() -> None:
    good = [ACCEPTED, REFUSED]
    soon = "refused in under 20 ms"
    assert failed(figures_of(*good, *[REFUSED] * 50, LATE)) == {soon}
    slow = Answer(200, 0.6, 0.0, has_retry_after=False)
    assert failed(figures_of(*good, slow)) == {"accepted, p99 over its bound"}
    silent = Answer(429, 0.01, 0.0, has_retry_after=False)
    assert failed(figures_of(*good, silent)) == {"429 without Retry-After"}
    error = Answer(503, 0.01, 0.0, has_retry_after=True)
    figures = figures_of(*good, error)
    assert failed(figures) == {"lost, or of another status"}
    assert figures["status 503"].row.value == 1
    assert failed(figures_of(*good, unsent=1)) == {"lost, or of another status"}
    assert failed(figures_of(ACCEPTED)) == {"refused with 429", soon}
