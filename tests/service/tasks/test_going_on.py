"""Rows that begin where others ended, on a fake model: one long row in pieces, to the bit."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle.text import BOS_ID, EOS_ID, PAD_ID
from service.decoding.rows import Continuation, ReadRow, TokenDetails, WriteRow
from service.decoding.sampling import SamplingParams
from service.errors import EngineStopped, ModelFailure
from service.scheduling.language_model import TextWork
from service.scheduling.scheduler import Job
from tests.fakes import RARE, FakeSession, Gate, Inbox, eventually, failure, running

NEVER = (EOS_ID, -1000.0)  # a bias: these texts do not end by themselves
# What lies around the ends of the blocks that noise is drawn in.
LENGTHS = st.integers(1, 12) | st.integers(250, 262)


def read_row(ids: Sequence[int], after: Continuation | None = None) -> ReadRow:
    tokens = np.array(ids if after is not None else [BOS_ID, *ids], np.uint16)
    targets = np.full_like(tokens, PAD_ID)
    return ReadRow(tokens, targets, wants_continuation=True, after=after)


def write_row(max_tokens: int, **options: Any) -> WriteRow:
    how: dict[str, Any] = {"params": SamplingParams(logit_bias=(NEVER,)), "seed": 5, "choice": 3}
    return WriteRow(max_tokens=max_tokens, wants_continuation=True, **(how | options))


def run_all(works: Sequence[TextWork], session: FakeSession | None = None) -> None:
    inbox = Inbox()
    with running(session or FakeSession(), inbox) as scheduler:
        jobs = [Job([work]) for work in works]
        for job in jobs:
            scheduler.submit(job)
        inbox.wait_for(*jobs)
    assert [failure(job) for job in jobs] == [None] * len(jobs)


def stands(continuation: Continuation | None) -> list[bytes]:
    """Where a row stands, to the bit."""
    assert continuation is not None
    return [x.tobytes() for x in (*continuation.states, continuation.logprobs)]


@settings(max_examples=12, deadline=None)
@given(
    pieces=st.lists(LENGTHS, min_size=2, max_size=4),
    beside=st.lists(LENGTHS, max_size=4),
    detailed=st.booleans(),
    prompt=st.lists(st.integers(4, 10), max_size=5),
)
def test_a_choice_in_pieces_is_the_choice_in_one(
    pieces: list[int], beside: list[int], detailed: bool, prompt: list[int]
) -> None:
    top = 2 if detailed else None
    whole = TextWork(read_row(prompt), [write_row(sum(pieces), detail_top=top)])
    run_all([whole])
    tokens: list[int] = []
    details: list[TokenDetails] = []
    read = read_row(prompt)
    for length in pieces:
        row = write_row(length, drawn=len(tokens), detail_top=top)
        others = [TextWork(read_row([4]), [write_row(n, seed=i)]) for i, n in enumerate(beside)]
        run_all([*others, TextWork(read, [row])])
        assert len(row.tokens) == length
        tokens += row.tokens
        details += row.details
        assert row.continuation is not None
        read = read_row([], row.continuation)
    (long,) = whole.write
    assert tokens == long.tokens
    assert stands(read.continuation) == stands(long.continuation)
    assert [x.top_logprobs.tobytes() for x in details] == [
        x.top_logprobs.tobytes() for x in long.details
    ]


def test_a_choice_that_reads_on_beside_others_is_the_one_that_reads_alone() -> None:
    start = TextWork(read_row([4, 5]), [])
    run_all([start])
    after = start.read.continuation
    alone = TextWork(read_row([6, 7, 8], after), [write_row(5, drawn=254)])
    run_all([alone])
    whole = TextWork(read_row([4, 5, 6, 7, 8]), [write_row(5, drawn=254)])
    run_all([whole])
    gate, inbox = Gate(), Inbox()
    again = TextWork(read_row([6, 7, 8], after), [write_row(5, drawn=254)])
    with running(FakeSession(gate=gate), inbox) as scheduler:
        long = Job([TextWork(read_row([4]), [write_row(40)])])
        scheduler.submit(long)
        gate.wait()
        gate.step(3)
        assert again.steps_its_prompt
        job = Job([again])
        scheduler.submit(job)
        gate.open()
        inbox.wait_for(long, job)
    for other in (alone, whole):
        assert again.write[0].tokens == other.write[0].tokens
        assert stands(again.write[0].continuation) == stands(other.write[0].continuation)


def test_a_continuation_is_after_the_last_token_and_none_is_after_eos() -> None:
    bias = {token: SamplingParams(logit_bias=((token, 1000.0),)) for token in (EOS_ID, 7)}
    rows = [write_row(3, params=params) for params in bias.values()]
    stopped = write_row(9, params=bias[7], stop=((7, 7),))
    work = TextWork(read_row([4]), [*rows, stopped])
    run_all([work])
    ended, full = rows
    assert (ended.tokens, ended.continuation) == ([EOS_ID], None)
    for row in (full, stopped):
        read = read_row([4, *row.tokens])
        run_all([TextWork(read)])
        assert stands(row.continuation) == stands(read.continuation)
    assert stopped.tokens == [7, 7]


def test_who_does_not_ask_gets_none_and_costs_no_run() -> None:
    runs = []
    for asks in (False, True):
        session = FakeSession()
        row = write_row(3)
        row.wants_continuation = asks
        run_all([TextWork(read_row([4]), [row])], session)
        assert (row.continuation is not None) == asks
        runs.append(len(session.runs))
    assert runs[1] == runs[0] + 1


class Ends:
    """A listener that sees whether the continuation is there."""

    def __init__(self, row: WriteRow) -> None:
        self.row = row
        self.seen: list[tuple[int, bool]] = []

    def wrote(self, token: int, details: TokenDetails) -> None:
        """Not of interest here."""

    def ended(self) -> None:
        self.seen.append((len(self.row.tokens), self.row.continuation is not None))


@pytest.mark.parametrize("asks", [False, True])
def test_a_listener_is_told_of_the_end_once_all_is_there(asks: bool) -> None:
    row = write_row(4)
    row.wants_continuation = asks
    row.listener = ends = Ends(row)
    run_all([TextWork(read_row([4]), [row])])
    assert ends.seen == [(4, asks)]


@pytest.mark.parametrize("fault", ["raises_at", "nan_at"])
def test_a_last_read_that_fails_fails_its_request_alone(fault: str) -> None:
    session = FakeSession(**dict[str, Any]({fault: RARE}))
    always = SamplingParams(logit_bias=((RARE, 1000.0),))
    inbox = Inbox()
    with running(session, inbox) as scheduler:
        pair = [write_row(1, params=always), write_row(1, params=always, choice=9)]
        bad = Job([TextWork(read_row([4]), [*pair, write_row(90)])])
        good = Job(
            [
                TextWork(
                    read_row([4, 5]),
                    [write_row(2, params=SamplingParams(logit_bias=((RARE, -1000.0), NEVER)))],
                )
            ]
        )
        scheduler.submit(bad)
        inbox.wait_for(bad)
        scheduler.submit(good)
        inbox.wait_for(good)
        assert scheduler.free
    assert failure(bad) is ModelFailure
    assert failure(good) is None


@pytest.mark.parametrize("others", [0, 1])
def test_a_request_that_is_given_up_in_its_last_read_frees_its_rows(others: int) -> None:
    gate, inbox = Gate(), Inbox()
    with running(FakeSession(gate=gate), inbox) as scheduler:
        rows = [write_row(1), *(write_row(50, choice=i) for i in range(others))]
        job = Job([TextWork(read_row([4]), rows)])
        scheduler.submit(job)
        gate.wait()  # the prompt
        gate.step()  # the last read stands here, or a step of the others before it
        assert rows[0].finish_reason == "length"
        assert rows[0].continuation is None
        assert not scheduler.free
        scheduler.cancel(job)
        gate.open()
        inbox.wait_for(job)
        eventually(lambda: scheduler.free)
        assert scheduler.alive


def test_a_worker_that_ends_in_a_last_read_holds_nothing() -> None:
    gate, inbox = Gate(), Inbox()
    with running(FakeSession(gate=gate), inbox) as scheduler:  # which asserts that it is free
        job = Job([TextWork(read_row([4]), [write_row(1)])])
        scheduler.submit(job)
        gate.wait()  # the prompt: its one token is drawn in the same iteration
        stopping = threading.Thread(target=scheduler.stop)
        stopping.start()
        eventually(lambda: not scheduler.alive)
        gate.open()
        stopping.join()
    assert failure(job) is EngineStopped


def test_a_read_after_a_text_counts_its_first_token_by_what_is_known() -> None:
    session = FakeSession()
    before = read_row([4, 5])
    run_all([TextWork(before)], session)
    after = before.continuation
    assert after is not None
    ids = np.array([6, 7, 8], np.uint16)
    targets = np.append(ids[1:], np.uint16(PAD_ID))
    carried = ReadRow(ids, targets, detail_top=2, after=after, first=6, wants_continuation=True)
    whole_ids = np.array([BOS_ID, 4, 5, 6, 7, 8], np.uint16)
    whole_targets = np.array([PAD_ID, PAD_ID, 6, 7, 8, PAD_ID], np.uint16)
    whole = ReadRow(whole_ids, whole_targets, detail_top=2, wants_continuation=True)
    run_all([TextWork(carried), TextWork(whole)], session)
    assert carried.logprob == whole.logprob
    for name in ("logprob", "entropy", "rank", "top_ids", "top_logprobs"):
        one, other = (getattr(TokenDetails.joined(x.details), name) for x in (carried, whole))
        assert one.tobytes() == other.tobytes()
    assert stands(carried.continuation) == stands(whole.continuation)


def test_a_read_of_nothing_after_a_text_stands_where_the_text_does() -> None:
    before = read_row([4, 5])
    run_all([TextWork(before)])
    session = FakeSession()
    nothing = read_row([], before.continuation)
    run_all([TextWork(nothing)], session)
    assert nothing.continuation is before.continuation
    assert nothing.uncounted == 0
    assert session.runs == []
