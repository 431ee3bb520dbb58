"""Processor time a request: the arithmetic of its rows and what its options accept."""

import argparse

import pytest

from bench.plain_clients import Span
from bench.requests import (
    KINDS,
    _setting_of,
    add_server_options,
    described,
    is_plain,
    rows_of,
    shape_of,
)


def spans_of(*cpu_us: float) -> list[Span]:
    """Spans of 100 requests which cost so much each."""
    return [Span(1.0, 1e-4 * us, 1e-3, [0.01] * 100) for us in cpu_us]


def test_a_row_is_the_median_of_the_rounds_with_the_ratio_to_each_other_server() -> None:
    spans = {"ours": spans_of(400, 200, 300), "empty": spans_of(100, 100, 90)}
    first, least, other, clients = rows_of("here", spans)
    assert (first.name, first.unit, first.against) == ("here: ours", "µs", "empty")
    assert first.value == pytest.approx(300)
    assert first.ratio == pytest.approx(0.3)  # of 100/400, 100/200 and 90/300
    assert least.value == pytest.approx(200)
    assert other.name == "here: empty"
    assert other.value == pytest.approx(100)
    assert clients.value == pytest.approx(10)


def test_every_kind_of_request_has_its_text_in_its_body() -> None:
    for kind in KINDS.values():
        body = kind.body("m", "some text")
        assert body["model"] == "m"
        assert "some text" in body.values()


@pytest.mark.parametrize(
    ("words", "kept"),
    [([], True), (["--quick"], False), (["--set", "a=1"], False), (["--against", "x"], False)],
)
def test_only_a_plain_run_keeps_its_results(words: list[str], kept: bool) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    add_server_options(parser)
    assert is_plain(parser.parse_args(words)) is kept


def test_words_of_options_are_read() -> None:
    assert shape_of("1x336") == (1, 336)
    assert _setting_of("workers=2") == ("workers", "2")
    assert described({"workers": "2", "max_rows": "8"}) == "workers=2, max_rows=8"
    assert described({}) == "defaults"
    with pytest.raises(argparse.ArgumentTypeError):
        _setting_of("workers")
