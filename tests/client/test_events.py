"""Server-sent events, cut anywhere."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from unroll_client.events import Event, EventParser

STREAM = (
    '\ufeff: comment\n\nevent: token\ndata: {"a": 1}\n\ndata:x\r\ndata: y\r\n\r\n'
    "event: lost\n\nid: 1\nretry: 5\ndata\n\ndata:  two\r\revent: done\rdata: é\u2028z\r\r\n"
)
EVENTS = [
    Event("token", '{"a": 1}'),
    Event("message", "x\ny"),
    Event("message", ""),
    Event("message", " two"),
    Event("done", "é\u2028z"),
]


@given(st.lists(st.integers(0, len(STREAM)), max_size=10))
def test_any_pieces_give_the_same_events(cuts: list[int]) -> None:
    places = sorted({0, len(STREAM), *cuts})
    parser = EventParser()
    found = []
    for begin, end in itertools.pairwise(places):
        found += parser.feed(STREAM[begin:end])
    assert found == EVENTS


def test_what_is_not_complete_is_no_event() -> None:
    assert EventParser().feed("data: a\n") == []
