"""Sources that are read together and searched together: who shares a run, and who fails by whom."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle.padding import padded_length
from service.decoding.search import Search
from service.errors import ModelFailure, ServiceError
from service.observe.metrics import EngineMetrics, Metrics
from service.scheduling.admission import QueueBounds
from service.scheduling.encoder_decoder import EncoderDecoderRunner
from service.scheduling.scheduler import Job, Scheduler
from tests.fakes import (
    DECODER_RAISES,
    ENCODER_RAISES,
    GIVES_NAN,
    FakeEncoderDecoderSession,
    Gate,
    Inbox,
    PairRun,
    at_work,
    eventually,
    failure,
)
from tests.service.search_reference import alone, found, source_of


def search(*ids: int, width: int = 2, max_tokens: int = 12) -> Search:
    return Search(source_of(ids), width, max_tokens)


def endless(width: int = 1, *, length: int = 3) -> Search:
    """A target that goes on for as long as a test looks at it."""
    forced = (4,) * 999
    return Search(source_of([5] * length), width, 1000, forced=forced)


def run_to_end(runner: EncoderDecoderRunner) -> list[tuple[Search, ServiceError | None]]:
    ended = []
    while not runner.free:
        ended += runner.run()
    assert runner.used_rows == 0
    return ended


def assert_as_alone(*searches: Search) -> None:
    for one in searches:
        assert found(one) == alone(FakeEncoderDecoderSession(), one)


def test_sources_of_one_padded_length_are_read_in_one_run() -> None:
    session = FakeEncoderDecoderSession()
    runner = EncoderDecoderRunner(session, name="fake")
    short = [search(*[4] * length) for length in (0, 3, 15)]
    wide = search(5, 6, width=4)
    long = [search(*[4] * length) for length in (16, 31)]
    runner.admit([short[0], long[0], wide, short[1], long[1], short[2]])
    runner.run()
    read = [run for run in session.runs if run.kind == "encode"]
    assert sorted(read, key=lambda x: x.positions) == [
        PairRun("encode", 4, 4, padded_length(16)),
        PairRun("encode", 2, 2, padded_length(32)),
    ]
    runner.run()
    # Of one width, too, they are searched together. One row a source is enough to begin with.
    stepped = [run for run in session.runs if run.kind == "step"]
    assert sorted(stepped[:3], key=lambda x: (x.positions, x.rows)) == [
        PairRun("step", 1, 1, 16),
        PairRun("step", 3, 3, 16),
        PairRun("step", 2, 2, 32),
    ]
    assert sorted(stepped[3:], key=lambda x: (x.positions, x.rows)) == [
        PairRun("step", 1, 4, 16),
        PairRun("step", 3, 6, 16),
        PairRun("step", 2, 4, 32),
    ]
    run_to_end(runner)
    assert_as_alone(*short, wide, *long)


def reads(session: FakeEncoderDecoderSession) -> list[int]:
    return [run.sources for run in session.runs if run.kind == "encode"]


def busy_runner(session: FakeEncoderDecoderSession) -> EncoderDecoderRunner:
    """It searches twelve sources, for as long as a test looks at it."""
    runner = EncoderDecoderRunner(session, name="fake")
    runner.admit([endless() for _ in range(12)])
    runner.run()
    return runner


def test_few_sources_wait_for_company_and_not_for_long() -> None:
    session = FakeEncoderDecoderSession()
    runner = busy_runner(session)
    assert reads(session) == [12]  # nobody waits where nothing runs
    first, second = search(4, 5), search(5, 6)
    runner.admit([first])
    runner.run()
    runner.admit([second])
    for _ in range(3):
        runner.run()
    assert reads(session) == [12]
    runner.run()
    assert reads(session) == [12, 2]
    third = [search(4, i % 6 + 4) for i in range(4)]
    runner.admit(third)
    runner.run()
    assert reads(session) == [12, 2, 4]  # enough of them do not wait
    for _ in range(20):
        runner.run()
    assert_as_alone(first, second, *third)


def test_a_source_that_left_before_it_was_read_makes_nobody_wait() -> None:
    session = FakeEncoderDecoderSession()
    runner = busy_runner(session)
    gone, later = search(4, 5), search(5, 6)
    runner.admit([gone])
    runner.run()
    runner.drop([gone])
    runner.run()
    runner.admit([later])
    for _ in range(4):
        runner.run()
    assert reads(session) == [12]
    runner.run()
    assert reads(session) == [12, 1]
    for _ in range(20):
        runner.run()
    assert_as_alone(later)


def test_very_many_sources_are_read_in_several_runs() -> None:
    session = FakeEncoderDecoderSession()
    runner = EncoderDecoderRunner(session, name="fake")
    many = [search(4, i % 6 + 4, width=1, max_tokens=2) for i in range(600)]
    runner.admit(many)
    runner.run()
    assert session.sizes("encode") == [256, 256, 88]  # 4096 positions at most
    assert session.sizes("step") == [300, 300]  # 340 rows at most
    run_to_end(runner)
    assert_as_alone(*many[::100])


def test_many_sources_that_come_late_begin_in_a_run_of_their_own() -> None:
    session = FakeEncoderDecoderSession()
    runner = EncoderDecoderRunner(session, name="fake")
    begun = [search(4, i + 4, width=3) for i in range(3)]
    runner.admit(begun)
    runner.run()
    few, many = [search(5, 5, width=3)], [search(5, i % 6 + 4, width=3) for i in range(9)]
    runner.admit(few)
    runner.run()
    assert session.sizes("step") == [3, 9 + 3]  # so few copies cost less than a run
    runner.admit(many)
    runner.run()
    assert session.sizes("step")[2:] == [9 + 3, 9]
    run_to_end(runner)
    assert_as_alone(*begun, *few, *many)


def test_who_comes_later_joins_the_others_at_the_next_step() -> None:
    session = FakeEncoderDecoderSession()
    runner = EncoderDecoderRunner(session, name="fake")
    first = endless()
    runner.admit([first])
    runner.run()
    runner.run()
    later = search(6, width=1)
    runner.admit([later])
    runner.run()
    assert session.sizes("step") == [1, 1, 2]
    runner.drop([first])
    run_to_end(runner)
    assert_as_alone(later)


def test_the_rows_are_those_of_the_work_that_is_held() -> None:
    runner = EncoderDecoderRunner(FakeEncoderDecoderSession(), name="fake")
    assert runner.free
    held = [search(4), search(5, width=5), endless(3)]
    runner.admit(held)
    assert runner.used_rows == 2 + 5 + 3
    assert not runner.free
    left = 10
    while left > 3:
        left -= sum(x.width for x, _ in runner.run())
        assert runner.used_rows == left
    runner.drop([held[2]])
    assert (runner.used_rows, runner.free) == (0, True)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_who_is_dropped_leaves_whether_read_or_not(steps: int) -> None:
    session = FakeEncoderDecoderSession()
    runner = EncoderDecoderRunner(session, name="fake")
    gone, stays, elsewhere = endless(2), search(7, width=2), endless(2, length=20)
    runner.admit([gone, stays, elsewhere])
    for _ in range(steps):
        runner.run()
    runner.drop([gone, elsewhere])
    assert [x for x, _ in run_to_end(runner)] == [stays]
    assert_as_alone(stays)
    runner.drop([gone])  # who has left already leaves nothing behind
    assert runner.used_rows == 0


def test_a_runner_that_is_cleared_is_free() -> None:
    runner = EncoderDecoderRunner(FakeEncoderDecoderSession(), name="fake")
    runner.admit([endless(), endless(3)])
    runner.run()
    runner.admit([endless()])
    runner.clear()
    assert runner.free
    assert runner.run() == []


# --- failures -------------------------------------------------------------------------------------


def errors_of(
    ended: Sequence[tuple[Search, ServiceError | None]], chosen: Sequence[Search]
) -> list[type[ServiceError] | None]:
    """The class of each one's error; every one has ended once."""
    kinds = []
    for one in chosen:
        ((_, error),) = [pair for pair in ended if pair[0] is one]
        kinds.append(None if error is None else type(error))
    return kinds


def test_an_encoder_that_raises_fails_the_sources_of_that_run_alone() -> None:
    runner = EncoderDecoderRunner(FakeEncoderDecoderSession(), name="fake")
    bad, beside, longer = search(ENCODER_RAISES), search(5, width=3), search(*[5] * 20)
    before = search(6)
    runner.admit([before])
    first = runner.run()
    runner.admit([bad, beside, longer])
    ended = [*first, *run_to_end(runner)]
    chosen = [bad, beside, longer, before]
    assert errors_of(ended, chosen) == [ModelFailure, ModelFailure, None, None]
    assert_as_alone(longer, before)


def test_a_decoder_that_raises_fails_that_batch_alone() -> None:
    runner = EncoderDecoderRunner(FakeEncoderDecoderSession(), name="fake")
    bad, beside = search(DECODER_RAISES), search(5)
    wider, longer = search(5, width=3), search(*[5] * 20)
    runner.admit([bad, beside, wider, longer])
    ended = run_to_end(runner)
    chosen = [bad, beside, wider, longer]
    assert errors_of(ended, chosen) == [ModelFailure, ModelFailure, None, None]
    assert_as_alone(wider, longer)
    after = search(6)
    runner.admit([after])
    assert errors_of(run_to_end(runner), [after]) == [None]
    assert_as_alone(after)


def test_what_is_not_finite_fails_its_source_alone() -> None:
    runner = EncoderDecoderRunner(FakeEncoderDecoderSession(), name="fake")
    bad, beside, another = search(GIVES_NAN), search(5), search(6)
    given_bad = Search(source_of([GIVES_NAN]), 1, 2, forced=(4, 2), given=True)
    given_good = Search(source_of([5]), 1, 2, forced=(4, 2), given=True)
    chosen = [beside, bad, another, given_bad, given_good]
    runner.admit(chosen)
    kinds = errors_of(run_to_end(runner), chosen)
    assert kinds == [None, ModelFailure, None, ModelFailure, None]
    assert_as_alone(beside, another, given_good)


def test_an_error_does_not_tell_what_broke(caplog: pytest.LogCaptureFixture) -> None:
    runner = EncoderDecoderRunner(FakeEncoderDecoderSession(), name="fake")
    runner.admit([search(DECODER_RAISES), search(*[ENCODER_RAISES] * 20)])
    details = {error.detail for _, error in run_to_end(runner) if error is not None}
    assert details == {"the model run failed; other requests go on"}
    assert [record.message for record in caplog.records] == ["engine fake: a model run raised"] * 2


bad_tokens = st.sampled_from([4, 5, 6, 7, 8, ENCODER_RAISES, DECODER_RAISES, GIVES_NAN])
arrivals = st.lists(
    st.tuples(st.lists(bad_tokens, max_size=20), st.integers(1, 3)), min_size=1, max_size=4
)


@settings(max_examples=50, deadline=None)
@given(schedule=st.lists(st.one_of(arrivals, st.integers(0, 9), st.none()), max_size=12))
def test_whatever_breaks_rows_are_conserved_and_every_source_ends_once(
    schedule: list[list[tuple[list[int], int]] | int | None],
) -> None:
    runner = EncoderDecoderRunner(FakeEncoderDecoderSession(), name="fake")
    held: list[Search] = []

    def step() -> None:
        for one, error in runner.run():
            held.remove(one)
            if error is None:
                assert_as_alone(one)
            assert one.hypotheses or error is not None

    for event in schedule:
        if event is None:
            step()
        elif isinstance(event, list):
            coming = [search(*ids, width=width) for ids, width in event]
            held += coming
            runner.admit(coming)
        elif event < len(held):
            runner.drop([held.pop(event)])
        assert runner.used_rows == sum(x.width for x in held)
    while held:
        step()
    assert runner.free


# --- behind a scheduler ---------------------------------------------------------------------------


@contextmanager
def running(
    session: FakeEncoderDecoderSession, inbox: Inbox, max_rows: int
) -> Iterator[Scheduler[Search]]:
    scheduler = Scheduler(
        EncoderDecoderRunner(session, name="fake"),
        inbox,
        name="fake",
        max_rows=max_rows,
        bounds=QueueBounds(requests=1_000_000, rows=100, tokens=100_000),
        metrics=EngineMetrics(Metrics(), "fake"),
    )
    with at_work(scheduler, session.gate):
        yield scheduler


def test_different_clients_share_every_step() -> None:
    gate, inbox = Gate(), Inbox()
    session = FakeEncoderDecoderSession(gate=gate)
    jobs = [Job([search(i, i + 1, width=3)]) for i in range(4, 8)]
    with running(session, inbox, max_rows=100) as scheduler:
        held = Job([endless(3)])
        scheduler.submit(held)
        gate.wait()  # it stands before its encoder
        for job in jobs:
            scheduler.submit(job)
        gate.step(3)  # the encoder, a step, the encoder of the others
        gate.step()  # a step of all
        scheduler.cancel(held)
        gate.open()
        inbox.wait_for(held, *jobs)
    assert session.sizes("encode") == [1, 4]
    assert session.sizes("step")[:2] == [1, 15]
    assert_as_alone(*(job.work[0] for job in jobs))


def test_no_more_rows_than_allowed_step_together_and_a_wide_one_runs_alone() -> None:
    inbox, session = Inbox(), FakeEncoderDecoderSession()
    jobs = [Job([search(4, width=2), search(5, width=2)]), Job([search(6, width=9)])]
    jobs.append(Job([search(7, width=2)]))
    with running(session, inbox, max_rows=4) as scheduler:
        for job in jobs:
            scheduler.submit(job)
        inbox.wait_for(*jobs)
        eventually(lambda: scheduler.free)
    assert {run.rows for run in session.runs if run.kind == "step"} <= {1, 2, 4, 9}
    assert_as_alone(*(x for job in jobs for x in job.work))


def test_a_source_that_fails_fails_its_request_and_no_other() -> None:
    inbox = Inbox()
    bad = Job([search(GIVES_NAN), endless(2)])
    good = Job([search(5), search(6)])
    with running(FakeEncoderDecoderSession(), inbox, max_rows=100) as scheduler:
        scheduler.submit(bad)
        scheduler.submit(good)
        inbox.wait_for(bad, good)
        eventually(lambda: scheduler.free)
    assert [failure(bad), failure(good)] == [ModelFailure, None]
    assert_as_alone(*good.work)
