"""One queue, one worker: what shares a run, who waits, what ends how, and that no row is lost."""

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle.text import BOS_ID, PAD_ID
from service.decoding.rows import ReadRow, WriteRow
from service.decoding.sampling import SamplingParams
from service.errors import DeadlineExceeded, EngineStopped, ModelFailure, QueueFull
from service.observe.engine_gauges import EngineGauges
from service.observe.metrics import EngineMetrics, Metrics
from service.scheduling.admission import QueueBounds, Rate
from service.scheduling.language_model import (
    MAX_STEPPED_PROMPT,
    READ_CHUNK,
    READ_CHUNK_WHILE_WRITING,
    LanguageModelRunner,
    TextWork,
)
from service.scheduling.scheduler import Job, Scheduler
from tests.fakes import (
    RARE,
    FakeSession,
    FakeStepper,
    Gate,
    Inbox,
    answer,
    answer_alone,
    at_work,
    eventually,
    failure,
    running,
)

BAD = RARE  # the token at which a session raises or gives NaN


def work(
    ids: Sequence[int] = (4, 5),
    *,
    choices: int = 0,
    max_tokens: int = 10,
    seed: int = 1,
    stop: tuple[tuple[int, ...], ...] = (),
    counts: bool = True,
    adapt: bool = False,
) -> TextWork:
    """A text that is read and counted, or read alone, and so many choices after it."""
    tokens = np.array([BOS_ID, *ids], np.uint16)
    targets = np.append(tokens[1:], np.uint16(PAD_ID))
    if not counts:
        targets[:] = PAD_ID
    rows = [
        WriteRow(params=SamplingParams(), seed=seed, choice=i, max_tokens=max_tokens, stop=stop)
        for i in range(choices)
    ]
    return TextWork(ReadRow(tokens, targets, wants_continuation=choices > 0), rows, adapt=adapt)


def endless(choices: int = 1, ids: Sequence[int] = (4, 5), *, adapt: bool = False) -> TextWork:
    """Choices that eos does not end while a test looks at them."""
    for seed in range(1000):
        piece = work(ids, choices=choices, max_tokens=40, seed=seed, adapt=adapt)
        alone = answer_alone(piece, FakeSession(adapts=adapt))
        if all(len(tokens) == 40 and BAD not in tokens for tokens, *_ in alone.choices):
            return work(ids, choices=choices, max_tokens=40, seed=seed, adapt=adapt)
    raise AssertionError("no seed writes for long enough")


def assert_as_alone(*jobs: Job[TextWork]) -> None:
    """Every answer is, to the bit, what the work gives without company."""
    for job in jobs:
        assert job.error is None
        for piece in job.work:
            assert answer(piece) == answer_alone(piece, FakeSession(adapts=piece.adapt))


def test_a_job_is_answered_as_if_it_were_alone() -> None:
    inbox = Inbox()
    jobs = [
        Job([work()]),
        Job([work([5] * 200), work([], choices=3), work([6], choices=1, max_tokens=300)]),
        Job([work([7, 8], choices=2, stop=((4,), (5, 5)))]),
    ]
    with running(FakeSession(max_rows=8), inbox) as scheduler:
        for job in jobs:
            scheduler.submit(job)
        inbox.wait_for(*jobs)
        assert scheduler.free
    assert_as_alone(*jobs)
    assert len(inbox.jobs) == 3


def test_a_work_whose_choices_end_in_one_step_ends_once() -> None:
    """A request of several prompts must not be handed back while one is still being written."""
    inbox = Inbox()
    same_length = work(choices=3, max_tokens=2)
    job = Job([same_length, endless(), work([5] * 300)])
    with running(FakeSession(), inbox) as scheduler:
        scheduler.submit(job)
        inbox.wait_for(job)
        assert scheduler.free
    assert {len(row.tokens) for row in same_length.write} == {2}
    assert_as_alone(job)


def test_a_choice_of_no_tokens_ends_with_the_reading() -> None:
    inbox = Inbox()
    piece = work(choices=2, max_tokens=0)
    for row in piece.write:
        row.finish_reason = "length"
    job = Job([piece])
    with running(FakeSession(), inbox) as scheduler:
        scheduler.submit(job)
        inbox.wait_for(job)
        assert scheduler.free
    assert [row.tokens for row in piece.write] == [[], []]


def test_choices_that_ended_before_the_reading_hold_no_rows_after_it() -> None:
    inbox = Inbox()
    piece = endless(3)
    piece.write[1].finish_reason = "length"
    job = Job([piece])
    with running(FakeSession(), inbox) as scheduler:
        scheduler.submit(job)
        inbox.wait_for(job)
        assert scheduler.free
    assert [len(row.tokens) for row in piece.write] == [40, 0, 40]


def test_a_row_joins_between_two_steps_of_another_and_leaves_before_it() -> None:
    gate, inbox = Gate(), Inbox()
    session = FakeSession(gate=gate)
    long, short = Job([endless()]), Job([endless()])
    short.work[0].write[0].max_tokens = 3
    with running(session, inbox) as scheduler:
        scheduler.submit(long)
        gate.wait()  # reads
        gate.step(4)  # writes
        scheduler.submit(short)
        gate.step()
        gate.open()
        inbox.wait_for(long, short)
    writes = [run.rows for run in session.runs if run.time == 1]
    # Alone, then together for two steps (the third token needs no run after it), then alone.
    assert sorted(set(writes)) == [1, 2]
    assert writes.count(2) == 2
    first = writes.index(2)
    assert writes[first : first + 2] == [2, 2]
    assert 0 < first < len(writes) - 2
    assert_as_alone(long, short)
    assert inbox.jobs == [short, long]


def test_rows_of_different_jobs_share_every_run() -> None:
    gate, inbox = Gate(), Inbox()
    session = FakeSession(gate=gate)
    jobs = [Job([endless()]) for _ in range(6)]
    with running(session, inbox) as scheduler:
        scheduler.submit(jobs[0])
        gate.wait()
        for job in jobs[1:]:
            scheduler.submit(job)
        gate.open()
        inbox.wait_for(*jobs)
    assert max(run.rows for run in session.runs) == 6
    assert len(session.runs) < 2 * (1 + 40)  # six alone would take six times 40
    assert_as_alone(*jobs)


def test_no_more_rows_run_together_than_are_allowed() -> None:
    inbox = Inbox()
    jobs = [Job([work([4 + i % 5], choices=1 + i % 3, seed=i)]) for i in range(20)]
    with running(FakeSession(max_rows=4), inbox, max_rows=4) as scheduler:
        for job in jobs:
            scheduler.submit(job)
        inbox.wait_for(*jobs)
    assert_as_alone(*jobs)


def test_a_job_wider_than_all_rows_runs_alone() -> None:
    inbox = Inbox()
    wide = Job([endless(5)])
    beside = Job([work(choices=1)])
    session = FakeSession()
    with running(session, inbox, max_rows=2) as scheduler:
        scheduler.submit(wide)
        scheduler.submit(beside)
        inbox.wait_for(wide, beside)
    assert max(run.rows for run in session.runs) == 5
    assert_as_alone(wide, beside)


def test_a_long_text_does_not_hold_up_rows_that_write() -> None:
    gate, inbox = Gate(), Inbox()
    session = FakeSession(gate=gate)
    writes, reads = Job([endless()]), Job([work([4, 5, 6] * 60)])
    with running(session, inbox) as scheduler:
        scheduler.submit(writes)
        gate.wait()
        gate.step()
        session.runs.clear()
        scheduler.submit(reads)
        gate.open()
        inbox.wait_for(writes, reads)
    together = session.runs[: 2 * (181 // READ_CHUNK_WHILE_WRITING)]
    assert {run.time for run in together if run.kind == "pick"} == {READ_CHUNK_WHILE_WRITING}
    # Between two chunks of the long text there is always a step of the row that writes.
    kinds = "".join(run.kind[0] for run in together)
    assert "pp" not in kinds
    assert_as_alone(writes, reads)


def test_a_long_text_alone_is_read_in_large_chunks() -> None:
    inbox = Inbox()
    session = FakeSession()
    job = Job([work([4, 5, 6] * 60)])
    with running(session, inbox) as scheduler:
        scheduler.submit(job)
        inbox.wait_for(job)
    assert [run.time for run in session.runs] == [READ_CHUNK, READ_CHUNK, 181 - 2 * READ_CHUNK]


# --- the queue's bounds ---------------------------------------------------------------------------


def test_the_queue_is_bounded_by_rows() -> None:
    gate, inbox = Gate(), Inbox()
    with running(FakeSession(gate=gate), inbox, max_rows=1, max_queue_rows=4) as scheduler:
        jobs = [Job([work()]), Job([work(choices=3)]), Job([work()])]
        scheduler.submit(jobs[0])
        gate.wait()
        scheduler.submit(jobs[1])
        scheduler.submit(jobs[2])
        late = Job([work()])
        with pytest.raises(QueueFull, match=r"4 rows and .*; at most .* 4 rows") as refused:
            scheduler.submit(late)
        assert int(refused.value.headers["Retry-After"]) >= 1
        gate.open()
        inbox.wait_for(*jobs)
        scheduler.submit(late)
        inbox.wait_for(late)
    assert_as_alone(*jobs, late)


def test_the_queue_is_bounded_by_tokens_and_those_to_write_count() -> None:
    gate, inbox = Gate(), Inbox()
    with running(FakeSession(gate=gate), inbox, max_rows=1, max_queue_tokens=40) as scheduler:
        jobs = [Job([work()]), Job([work([4] * 9, choices=2, max_tokens=10)]), Job([work([4] * 9)])]
        scheduler.submit(jobs[0])
        gate.wait()
        scheduler.submit(jobs[1])
        scheduler.submit(jobs[2])
        with pytest.raises(QueueFull, match=r"40 tokens; .* 40 tokens may wait"):
            scheduler.submit(Job([work([])]))
        gate.open()
        inbox.wait_for(*jobs)


def test_a_job_is_queued_whole_or_not_at_all() -> None:
    gate, inbox = Gate(), Inbox()
    with running(FakeSession(gate=gate), inbox, max_rows=1, max_queue_rows=3) as scheduler:
        first, second = Job([work()]), Job([work()])
        scheduler.submit(first)
        gate.wait()
        scheduler.submit(second)
        refused = Job([work(), work(), work()])
        with pytest.raises(QueueFull):
            scheduler.submit(refused)
        two = Job([work(), work()])
        scheduler.submit(two)
        gate.open()
        inbox.wait_for(first, second, two)
    assert refused not in inbox.jobs


def test_cancelled_jobs_make_room_in_the_queue_wherever_they_stand() -> None:
    """Else clients that gave up would keep others out."""
    gate, inbox = Gate(), Inbox()
    with running(FakeSession(gate=gate), inbox, max_rows=2, max_queue_rows=6) as scheduler:
        active, head = Job([endless()]), Job([endless(2)])
        scheduler.submit(active)
        gate.wait()
        scheduler.submit(head)  # waits for two free rows
        impatient = [Job([work()]) for _ in range(4)]
        for job in impatient:
            scheduler.submit(job)
        late = Job([work()])
        with pytest.raises(QueueFull):
            scheduler.submit(late)
        for job in impatient:
            scheduler.cancel(job)
        gate.step(2)
        scheduler.submit(late)
        gate.open()
        inbox.wait_for(active, head, late, *impatient)
    assert_as_alone(active, head, late)
    assert all(job.work[0].read.position == 0 for job in impatient)


# --- cancelling -----------------------------------------------------------------------------------


def test_a_job_cancelled_in_the_queue_never_runs() -> None:
    gate, inbox = Gate(), Inbox()
    session = FakeSession(gate=gate)
    with running(session, inbox, max_rows=1) as scheduler:
        active, queued, after = Job([work()]), Job([work([7] * 30)]), Job([work()])
        scheduler.submit(active)
        gate.wait()
        scheduler.submit(queued)
        scheduler.submit(after)
        scheduler.cancel(queued)
        gate.open()
        inbox.wait_for(active, queued, after)
        assert scheduler.free
    assert queued.work[0].read.position == 0
    assert_as_alone(active, after)
    assert inbox.jobs.count(queued) == 1


@pytest.mark.parametrize("runs", [1, 5])
def test_a_job_cancelled_while_it_reads_or_writes_is_off_before_the_next_step(runs: int) -> None:
    gate, inbox = Gate(), Inbox()
    session = FakeSession(gate=gate)
    with running(session, inbox) as scheduler:
        cancelled, beside = Job([endless(2), work([5] * 500)]), Job([endless(ids=(6,))])
        scheduler.submit(cancelled)
        scheduler.submit(beside)
        gate.wait()
        gate.step(runs)
        scheduler.cancel(cancelled)
        scheduler.cancel(cancelled)  # twice is once
        seen = [row.position for row in (piece.read for piece in cancelled.work)]
        gate.step(2)
        moved = [row.position for row in (piece.read for piece in cancelled.work)]
        assert moved[1] - seen[1] <= READ_CHUNK
        written = [len(row.tokens) for row in cancelled.work[0].write]
        gate.open()
        inbox.wait_for(cancelled, beside)
        assert scheduler.free
    assert [len(row.tokens) for row in cancelled.work[0].write] == written
    assert any(row.finish_reason is None for row in cancelled.work[0].write)
    assert_as_alone(beside)
    assert inbox.jobs.count(cancelled) == 1


def test_cancelling_a_job_that_has_ended_changes_nothing() -> None:
    inbox = Inbox()
    with running(FakeSession(), inbox) as scheduler:
        job, next_job = Job([work()]), Job([work(choices=2)])
        scheduler.submit(job)
        inbox.wait_for(job)
        scheduler.cancel(job)
        scheduler.submit(next_job)
        inbox.wait_for(next_job)
        assert scheduler.free
    assert_as_alone(job, next_job)
    assert inbox.jobs == [job, next_job]


# --- failures -------------------------------------------------------------------------------------


def test_a_read_that_raises_fails_the_jobs_in_that_run_and_no_others() -> None:
    gate, inbox = Gate(), Inbox()
    session = FakeSession(gate=gate, raises_at=BAD)
    with running(session, inbox, max_rows=3) as scheduler:
        writes = Job([endless()])
        scheduler.submit(writes)
        gate.wait()
        gate.step()
        bad, beside = Job([work([4, BAD])]), Job([work([5, 5])])
        waits = Job([work([6] * 3)])
        for job in (bad, beside, waits):
            scheduler.submit(job)
        gate.open()
        inbox.wait_for(writes, bad, beside, waits)
        after = Job([work(choices=2)])
        scheduler.submit(after)
        inbox.wait_for(after)
        assert scheduler.alive
        assert scheduler.free
    assert failure(bad) is ModelFailure
    assert failure(beside) is ModelFailure
    assert_as_alone(writes, waits, after)


def test_a_step_that_raises_fails_the_jobs_in_that_run_and_no_others() -> None:
    inbox = Inbox()
    poisonous = next(
        seed
        for seed in range(1000)
        if BAD in answer_alone(work(choices=1, seed=seed), FakeSession()).choices[0][0][1:-1]
    )
    with running(FakeSession(raises_at=BAD), inbox) as scheduler:
        bad = Job([work(choices=1, seed=poisonous), work(choices=3, max_tokens=0)])
        reads = Job([work([5] * 1000)])
        scheduler.submit(bad)
        scheduler.submit(reads)
        inbox.wait_for(bad, reads)
        after = Job([endless()])
        scheduler.submit(after)
        inbox.wait_for(after)
        assert scheduler.free
    assert failure(bad) is ModelFailure
    assert_as_alone(reads, after)


def test_a_job_fails_as_a_whole_and_once() -> None:
    inbox = Inbox()
    with running(FakeSession(raises_at=BAD), inbox, max_rows=2) as scheduler:
        job = Job([work([BAD]), work([BAD]), *(work([5] * 100, choices=1) for _ in range(20))])
        scheduler.submit(job)
        inbox.wait_for(job)
        after = Job([work()])
        scheduler.submit(after)
        inbox.wait_for(after)
        assert scheduler.free
    assert failure(job) is ModelFailure
    assert inbox.jobs == [job, after]
    assert sum(piece.read.position > 0 for piece in job.work) <= 2
    assert_as_alone(after)


def test_nan_fails_the_job_that_meets_it_and_no_other() -> None:
    gate, inbox = Gate(), Inbox()
    with running(FakeSession(nan_at=BAD, gate=gate), inbox) as scheduler:
        first = Job([work()])
        scheduler.submit(first)
        gate.wait()
        bad, beside = Job([work([4, BAD, 4]), work(choices=2)]), Job([endless()])
        scheduler.submit(bad)
        scheduler.submit(beside)
        gate.open()
        inbox.wait_for(first, bad, beside)
        assert scheduler.free
    assert failure(bad) is ModelFailure
    assert "not finite" in str(bad.error)
    assert_as_alone(first, beside)


def test_stopping_tells_everyone_who_waits() -> None:
    gate, inbox = Gate(), Inbox()
    with running(FakeSession(gate=gate), inbox, max_rows=2) as scheduler:
        done = Job([work()])
        scheduler.submit(done)
        gate.wait()
        gate.let_through()
        inbox.wait_for(done)
        active, reads, queued = Job([endless()]), Job([work([5] * 500)]), Job([work(choices=2)])
        scheduler.submit(active)
        scheduler.submit(reads)
        gate.wait()
        gate.step(3)
        scheduler.submit(queued)
        stopping = threading.Thread(target=scheduler.stop)
        stopping.start()
        eventually(lambda: not scheduler.alive)
        with pytest.raises(EngineStopped) as refused:
            scheduler.submit(Job([work()]))
        assert "Retry-After" in refused.value.headers
        gate.open()
        stopping.join()
        assert scheduler.free
    assert_as_alone(done)
    assert [failure(job) for job in (active, reads, queued)] == [EngineStopped] * 3
    assert sorted(map(id, inbox.jobs)) == sorted(map(id, (done, active, reads, queued)))


def test_a_scheduler_that_was_not_started_takes_no_work() -> None:
    scheduler = Scheduler(
        LanguageModelRunner(FakeSession(), 1, name="x"),
        Inbox(),
        name="x",
        max_rows=1,
        bounds=QueueBounds(requests=1_000_000, rows=1, tokens=1),
        metrics=EngineMetrics(Metrics(), "fake"),
    )
    assert not scheduler.alive
    with pytest.raises(EngineStopped):
        scheduler.submit(Job([work()]))


def test_a_worker_that_cannot_hand_back_dies_and_tells_everyone_who_waits() -> None:
    gate, inbox = Gate(), Inbox(raises=1)
    with running(FakeSession(gate=gate), inbox, max_rows=2) as scheduler:
        ends, active, queued = Job([work()]), Job([endless()]), Job([endless()])
        scheduler.submit(active)
        gate.wait()
        scheduler.submit(ends)
        scheduler.submit(queued)
        gate.open()
        inbox.wait_for(ends, active, queued)
        eventually(lambda: not scheduler.alive)
        with pytest.raises(EngineStopped):
            scheduler.submit(Job([work()]))
    assert ends.error is None  # it was done
    assert [failure(active), failure(queued)] == [EngineStopped] * 2


def test_texts_that_there_is_no_memory_for_fail_and_others_go_on() -> None:
    gate, inbox = Gate(), Inbox()
    session = FakeSession(gate=gate)
    with running(session, inbox, max_rows=3) as scheduler:
        active = Job([endless()])
        scheduler.submit(active)
        gate.wait()
        session.initial_states_raise = True
        others = [Job([work()]) for _ in range(4)]  # two are taken at once, two stay queued
        for job in others:
            scheduler.submit(job)
        gate.open()
        inbox.wait_for(active, *others)
        assert scheduler.alive
    assert [failure(job) for job in others] == [ModelFailure] * 4
    assert_as_alone(active)


def test_a_short_prompt_is_read_in_the_steps_of_those_who_write() -> None:
    gate, inbox = Gate(), Inbox()
    session = FakeSession(gate=gate)
    with running(session, inbox) as scheduler:
        first = Job([endless()])
        scheduler.submit(first)
        gate.let_through()  # its text
        gate.wait()  # its first step
        session.runs.clear()
        second = Job([work((4, 5, 6, 7), choices=1, max_tokens=6, counts=False)])
        scheduler.submit(second)
        gate.open()
        inbox.wait_for(first, second)
    assert {(run.kind, run.time) for run in session.runs} == {("read", 1)}
    assert max(run.rows for run in session.runs) == 2
    assert_as_alone(first, second)


@pytest.mark.parametrize("more", [0, 1])
def test_a_longer_prompt_is_read_in_runs_of_its_own_beside_those_who_write(more: int) -> None:
    gate, inbox = Gate(), Inbox()
    session = FakeSession(gate=gate)
    with running(session, inbox) as scheduler:
        first = Job([endless()])
        scheduler.submit(first)
        gate.let_through()  # its text
        gate.wait()  # its first step
        session.runs.clear()
        ids = [4] * (MAX_STEPPED_PROMPT - 1 + more)  # and bos
        second = Job([work(ids, choices=1, max_tokens=6, counts=False)])
        scheduler.submit(second)
        gate.open()
        inbox.wait_for(first, second)
    longest = max(run.time for run in session.runs)
    assert longest == (READ_CHUNK_WHILE_WRITING if more else 1)
    assert_as_alone(first, second)


def test_a_prompt_that_was_read_before_is_written_after_at_once() -> None:
    inbox = Inbox()
    session = FakeSession()
    with running(session, inbox) as scheduler:
        before = Job([work((4, 5), choices=1, counts=False)])
        scheduler.submit(before)
        inbox.wait_for(before)
        known = before.work[0].read.continuation
        assert known is not None
        again = work((4, 5), choices=2, counts=False)
        again.read.resume(3, known.states)
        again.read.continuation = known
        session.runs.clear()
        job = Job([again])
        scheduler.submit(job)
        inbox.wait_for(job)
    assert all(run.time == 1 for run in session.runs)
    assert_as_alone(job)


def test_a_dead_worker_keeps_nothing_of_those_who_give_up() -> None:
    inbox = Inbox(raises=1)
    with running(FakeSession(), inbox) as scheduler:
        job = Job([work()])
        scheduler.submit(job)
        inbox.wait_for(job)
        eventually(lambda: not scheduler.alive)
        for _ in range(10):
            scheduler.cancel(Job([work()]))
        assert scheduler._cancelling == []


# --- clients --------------------------------------------------------------------------------------


def short_queue(gate: Gate, inbox: Inbox) -> Scheduler[TextWork]:
    """One row at a time, eight requests in the queue, four of them of one client."""
    return Scheduler(
        LanguageModelRunner(FakeSession(gate=gate), 1, name="fake"),
        inbox,
        name="fake",
        max_rows=1,
        bounds=QueueBounds(requests=8, rows=8, tokens=10_000, client_share=0.5),
        metrics=EngineMetrics(Metrics(), "fake"),
    )


def test_one_client_fills_its_share_and_the_others_find_room() -> None:
    gate, inbox = Gate(), Inbox()
    scheduler = short_queue(gate, inbox)
    with at_work(scheduler, gate):
        first = Job([work()], client="a")
        scheduler.submit(first)
        gate.wait()
        mine = [Job([work()], client="a") for _ in range(4)]
        for job in mine:
            scheduler.submit(job)
        with pytest.raises(QueueFull, match="with this API key may wait"):
            scheduler.submit(Job([work()], client="a"))
        others = [Job([work()], client="b") for _ in range(4)]
        for job in others:
            scheduler.submit(job)
        with pytest.raises(QueueFull, match="at most 8 requests"):
            scheduler.submit(Job([work()], client="c"))
        gate.open()
        inbox.wait_for(first, *mine, *others)
    # In turn, whoever came first.
    order = [job.client for job in inbox.jobs[1:]]
    assert order in (["a", "b"] * 4, ["b", "a"] * 4, ["b"] + ["a", "b"] * 3 + ["a"])


def test_a_job_that_is_larger_than_the_queue_leaves_room_for_others() -> None:
    gate, inbox = Gate(), Inbox()
    scheduler = short_queue(gate, inbox)
    with at_work(scheduler, gate):
        first = Job([work()], client="x")
        scheduler.submit(first)
        gate.wait()
        huge = Job([work() for _ in range(30)], client="a")
        scheduler.submit(huge)
        other = Job([work()], client="b")
        scheduler.submit(other)
        with pytest.raises(QueueFull):
            scheduler.submit(Job([work()], client="a"))
        gate.open()
        inbox.wait_for(first, huge, other)
    assert inbox.jobs.index(other) < inbox.jobs.index(huge)
    assert_as_alone(first, huge, other)


def test_when_to_come_again_follows_from_what_was_measured() -> None:
    rate = Rate()
    assert rate.seconds(1000) == 0.0
    for _ in range(50):
        rate.add(200, 0.1)
    assert rate.seconds(10_000) == pytest.approx(5.0)
    for _ in range(2000):
        rate.add(100, 0.1)  # it became half as fast, a while ago
    assert rate.seconds(10_000) == pytest.approx(10.0, rel=1e-3)


# --- rows that adapt ------------------------------------------------------------------------------


def test_work_that_adapts_runs_beside_the_others_and_never_with_them() -> None:
    inbox = Inbox()
    plain, adapting = FakeSession(max_rows=8), FakeSession(max_rows=8, adapts=True)
    jobs = [
        Job([work(adapt=True), work([5] * 200, adapt=True), work([6], choices=3, adapt=True)]),
        Job([work(), work([5] * 200), work([6], choices=3)]),
        Job([work([7, 8], choices=2, adapt=True), work([7, 8], choices=2)]),
    ]
    with running(plain, inbox, adapting=adapting) as scheduler:
        for job in jobs:
            scheduler.submit(job)
        inbox.wait_for(*jobs)
        assert scheduler.free
    assert_as_alone(*jobs)
    one, other = jobs[2].work
    assert answer(one) != answer(other)


def test_rows_that_adapt_count_among_the_rows_that_run_together() -> None:
    inbox = Inbox()
    plain, adapting = FakeSession(max_rows=3), FakeSession(max_rows=3, adapts=True)
    job = Job([work(choices=2, adapt=i % 2 == 0) for i in range(6)])
    with running(plain, inbox, adapting=adapting, max_rows=3) as scheduler:
        scheduler.submit(job)
        inbox.wait_for(job)
    # Work of two rows each: never two pieces at once, so never one of each kind.
    assert {run.rows for run in (*plain.runs, *adapting.runs)} == {1, 2}
    assert_as_alone(job)


def test_a_long_text_of_one_kind_does_not_hold_up_rows_of_the_other_that_write() -> None:
    for writes_adapting in (False, True):
        inbox = Inbox()
        plain, adapting = FakeSession(), FakeSession(adapts=True)
        written = endless(adapt=writes_adapting)
        read = work([5] * 400, adapt=not writes_adapting)
        reader = plain if writes_adapting else adapting
        gate = reader.gate = Gate()
        jobs = Job([written]), Job([read])
        with running(plain, inbox, adapting=adapting) as scheduler:
            scheduler.submit(jobs[1])
            gate.wait()
            scheduler.submit(jobs[0])
            gate.step(2)
            gate.open()
            inbox.wait_for(*jobs)
        assert_as_alone(*jobs)
        assert READ_CHUNK_WHILE_WRITING in {run.time for run in reader.runs}


@pytest.mark.parametrize("breaks", ["plain", "adapting"])
@pytest.mark.parametrize("choices", [0, 2])
def test_a_run_of_one_kind_that_raises_fails_no_work_of_the_other(
    breaks: str, choices: int
) -> None:
    inbox = Inbox()
    plain = FakeSession(raises_at=BAD if breaks == "plain" else None)
    adapting = FakeSession(raises_at=BAD if breaks == "adapting" else None, adapts=True)
    bad = Job([work([4, BAD, 5], choices=choices, adapt=breaks == "adapting")])
    good = Job([work([4, BAD, 5], adapt=breaks == "plain")])
    with running(plain, inbox, adapting=adapting) as scheduler:
        for job in (bad, good):
            scheduler.submit(job)
        inbox.wait_for(bad, good)
        assert scheduler.alive
        eventually(lambda: scheduler.free)
    assert failure(bad) is ModelFailure
    assert_as_alone(good)


def test_arrays_for_rows_that_adapt_are_made_when_the_first_one_comes() -> None:
    inbox = Inbox()
    plain, adapting = FakeSession(), _CountedSession(adapts=True)
    with running(plain, inbox, adapting=adapting) as scheduler:
        for adapt, made in ((False, 0), (True, 1), (True, 1)):
            job = Job([work(choices=1, adapt=adapt)])
            scheduler.submit(job)
            inbox.wait_for(job)
            assert adapting.steppers == made


class _CountedSession(FakeSession):
    """Counts its steppers."""

    steppers = 0

    def stepper(self, capacity: int) -> FakeStepper:
        self.steppers += 1
        return super().stepper(capacity)


def test_a_prompt_that_adapted_leaves_no_states_behind() -> None:
    """They are large, and many prompts may wait for the last choice of their request."""
    inbox = Inbox()
    kept: list[int] = []
    pieces = [work(choices=1, counts=False, adapt=True), work([6] * 99, choices=2, adapt=True)]
    for piece in pieces:
        piece.read.remember = lambda tokens, _: kept.append(len(tokens))
    job = Job(pieces)
    with running(FakeSession(), inbox, adapting=FakeSession(adapts=True)) as scheduler:
        scheduler.submit(job)
        inbox.wait_for(job)
    assert sorted(kept) == [3, 100]
    assert [piece.read.continuation for piece in pieces] == [None, None]
    assert_as_alone(job)


# --- any schedule ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Submit:
    """A job arrives; each piece: its text, its choices, their length, whether it adapts."""

    pieces: tuple[tuple[tuple[int, ...], int, int, bool], ...]
    client: str
    late: bool  # its time is over already


@dataclass(frozen=True)
class Cancel:
    """Somebody gives up: one of the jobs so far."""

    which: int


@dataclass(frozen=True)
class Step:
    """Runs may pass."""

    runs: int


pieces = st.tuples(
    st.lists(st.integers(3, 11), max_size=25).map(tuple),
    st.integers(0, 4),
    st.integers(1, 15),
    st.booleans(),
)
events = st.one_of(
    st.builds(
        Submit,
        st.lists(pieces, min_size=1, max_size=3).map(tuple),
        st.sampled_from(["", "a", "b"]),
        st.integers(0, 7).map(lambda x: x == 0),
    ),
    st.integers(0, 9).map(Cancel),
    st.integers(1, 6).map(Step),
)
schedules = st.lists(events, min_size=1, max_size=24)


def submitted(event: Submit, seed: int) -> Job[TextWork]:
    # A lone choice after a text that is not counted may read it in the steps of others.
    return Job(
        [
            work(
                ids,
                choices=n,
                max_tokens=length,
                seed=seed,
                counts=n != 1 or length % 3 == 0,
                adapt=adapt,
            )
            for ids, n, length, adapt in event.pieces
        ],
        client=event.client,
        deadline=time.monotonic() + (-1 if event.late else 3600),
    )


def play(
    schedule: Iterable[Submit | Cancel | Step], scheduler: Scheduler[TextWork], gate: Gate
) -> tuple[list[Job[TextWork]], set[int]]:
    """The jobs that were taken, and the places of those that were given up."""
    jobs: list[Job[TextWork]] = []
    given_up: set[int] = set()
    for event in schedule:
        if isinstance(event, Step):
            for _ in range(event.runs):
                gate.let_through()
        elif isinstance(event, Cancel):
            if event.which < len(jobs):
                given_up.add(event.which)
                scheduler.cancel(jobs[event.which])
        else:
            job = submitted(event, seed=len(jobs))
            try:
                scheduler.submit(job)
            except QueueFull:
                assert all(row.position == 0 for row in (x.read for x in job.work))
            else:
                jobs.append(job)
    return jobs, given_up


@pytest.mark.parametrize("fault", ["none", "raises", "nan"])
@settings(max_examples=30, deadline=None)
@given(schedule=schedules, stops=st.booleans())
def test_in_any_schedule_rows_are_conserved_and_every_answer_is_the_answer_alone(
    fault: str, schedule: list[Submit | Cancel | Step], stops: bool
) -> None:
    gate, inbox = Gate(), Inbox()
    session, adapting = (
        FakeSession(
            gate=gate,
            raises_at=BAD if fault == "raises" else None,
            nan_at=BAD if fault == "nan" else None,
            adapts=adapts,
        )
        for adapts in (False, True)
    )
    with running(session, inbox, adapting=adapting, max_rows=5, max_queue_rows=12) as scheduler:
        jobs, given_up = play(schedule, scheduler, gate)
        gate.open()
        if not stops:
            inbox.wait_for(*jobs)
            # What is left of a failed or cancelled job is dropped with the next turn.
            eventually(lambda: scheduler.free)
            assert scheduler.alive
    assert sorted(map(id, inbox.jobs)) == sorted(map(id, jobs))  # each exactly once
    assert scheduler.gauges() == EngineGauges(0, 0, 0, 0, 0.0)
    for place, job in enumerate(jobs):
        if job.deadline is not None and job.deadline < job.submitted_at:
            # It is told, and nothing of it was run.
            assert job.admitted_at is None
            assert not any(piece.read.position for piece in job.work)
            if not stops and place not in given_up:
                assert failure(job) is DeadlineExceeded
    jobs_in_time = [x for x in jobs if x.admitted_at is not None or failure(x) is not None]
    assert stops or given_up or len(jobs_in_time) == len(jobs)
    allowed = {
        None,
        DeadlineExceeded,
        *([EngineStopped] if stops else []),
        *([ModelFailure] * (fault != "none")),
    }
    for place, job in enumerate(jobs):
        assert failure(job) in allowed
        if failure(job) is None and place not in given_up:
            assert_as_alone(job)
        is_late = failure(job) is DeadlineExceeded
        if fault == "nan" and not stops and not is_late and place not in given_up:
            alone = [answer_alone(x, FakeSession(adapts=x.adapt)) for x in job.work]
            # After the last token of a text nothing is asked unless something is written there.
            read = [BAD in x.read.tokens[: None if x.write else -1] for x in job.work]
            written = [BAD in tokens[:-1] for x in alone for tokens, *_ in x.choices]
            assert (failure(job) is ModelFailure) == any(read + written)
