"""The log lines of the benchmark, and how it counts alarms."""

import re

import pytest

from bench.anomalies import alarms, is_alarm
from bench.log_lines import good_lines, wrong_lines


def test_lines_are_different_and_follow_from_the_seed() -> None:
    lines = good_lines(500, seed=3)
    assert len(set(lines)) == 500
    assert good_lines(600, seed=3)[:500] == lines
    assert good_lines(500, seed=4) != lines
    assert not [line for line in lines if re.search("[<>|\n]", line)]


def test_no_wrong_line_is_a_good_one() -> None:
    wrong = {line for _, line in wrong_lines()}
    assert len(wrong) == len(wrong_lines())
    assert not wrong & set(good_lines(2000, seed=3))


def test_an_alarm_is_above_the_threshold_or_of_a_length_that_nobody_has_seen() -> None:
    good = [{"percentile": x} for x in (None, 99.0, 99.1, 20.0)]
    assert [is_alarm(x, 99.0) for x in good] == [True, False, True, False]
    counted = alarms(99.0, good, good[:1], held_out=12)
    assert (counted.seen, counted.found) == (0.5, 1)
    assert counted.standard_error == pytest.approx((0.01 * 0.99 * (1 / 12 + 1 / 4)) ** 0.5)
