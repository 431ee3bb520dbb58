"""Texts that are labelled together: who shares a run, and who fails by whom."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle.arrays import Float32Array
from service.bundle.padding import padded_length
from service.bundle.text import BOS_ID, EOS_ID, PAD_ID
from service.errors import ModelFailure, ServiceError
from service.observe.metrics import EngineMetrics, Metrics
from service.scheduling.admission import QueueBounds
from service.scheduling.labeler import MAX_RUN_SUMS, LabelerRunner, LabelWork
from service.scheduling.scheduler import Job, Scheduler
from tests.fakes import (
    LABELER_GIVES_NAN,
    LABELER_RAISES,
    FakeLabelerSession,
    Gate,
    Inbox,
    LabelRun,
    at_work,
    eventually,
    failure,
)


class Heard:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.parts: list[Float32Array] = []

    def took(self, logprobs: Float32Array) -> None:
        self.parts.append(logprobs.copy())


def session_of(kind: str, gate: Gate | None = None) -> FakeLabelerSession:
    places = kind != "text"
    return FakeLabelerSession(labels_places=places, reads_forward=kind == "forward", gate=gate)


def text(kind: str, ids: Sequence[int]) -> LabelWork:
    return texts(kind, [ids])


def texts(kind: str, many: Sequence[Sequence[int]]) -> LabelWork:
    """Texts of one padded length."""
    end = [] if kind == "forward" else [EOS_ID]
    rows = [[BOS_ID, *ids, *end] for ids in many]
    lengths = np.array([len(row) for row in rows], np.int32)
    tokens = np.full((len(rows), padded_length(int(lengths[0]))), PAD_ID, np.uint16)
    for place, row in zip(tokens, rows, strict=True):
        place[: len(row)] = row
    return LabelWork(tokens, lengths, listeners=[Heard() for _ in rows] if kind != "text" else [])


def outcome(work: LabelWork) -> tuple[bytes, bytes, list[bytes]]:
    """Everything that reading a text gives, to the bit."""
    assert work.logprobs is not None
    assert work.states is not None
    heard = b""
    for listener in work.listeners:
        assert isinstance(listener, Heard)
        heard += np.concatenate(listener.parts).tobytes()
    return work.logprobs.tobytes(), heard, [x.tobytes() for x in work.states]


def run_to_end(runner: LabelerRunner) -> list[tuple[LabelWork, ServiceError | None]]:
    ended = []
    while not runner.free:
        ended += runner.run()
    assert runner.used_rows == 0
    return ended


def alone(kind: str, ids: Sequence[int]) -> LabelWork:
    work = text(kind, ids)
    runner = LabelerRunner(session_of(kind), name="fake")
    runner.admit([work])
    run_to_end(runner)
    return work


ids = st.lists(st.integers(4, 30), max_size=150)


@pytest.mark.parametrize("kind", ["text", "places", "forward"])
@settings(max_examples=40, deadline=None)
@given(many=st.lists(ids, min_size=1, max_size=12))
def test_a_text_alone_is_the_text_in_any_company(kind: str, many: list[list[int]]) -> None:
    runner = LabelerRunner(session_of(kind), name="fake")
    works = [text(kind, each) for each in many]
    runner.admit(works)
    assert runner.used_rows == len(works)
    ended = run_to_end(runner)
    assert sorted(id(work) for work, _ in ended) == sorted(map(id, works))
    for each, work in zip(many, works, strict=True):
        assert outcome(work) == outcome(alone(kind, each))


@pytest.mark.parametrize("kind", ["text", "places"])
def test_texts_of_one_padded_length_share_a_run(kind: str) -> None:
    session = session_of(kind)
    runner = LabelerRunner(session, name="fake")
    runner.admit([text(kind, [5] * length) for length in (0, 20, 14, 3, 30)])
    run_to_end(runner)
    assert session.runs == [LabelRun(3, 16), LabelRun(2, 32)]


@pytest.mark.parametrize("kind", ["text", "forward"])
def test_long_texts_do_not_hold_up_a_short_one(kind: str) -> None:
    session = session_of(kind)
    runner = LabelerRunner(session, name="fake")
    long = [text(kind, [5] * 3000) for _ in range(20)]
    runner.admit(long)
    runner.run()
    short = text(kind, [6])
    runner.admit([short])
    ended = [work for _ in range(2) for work, _ in runner.run()]
    assert short in ended
    assert all(run.texts * run.places <= 4096 for run in session.runs)
    run_to_end(runner)
    assert all(work.logprobs is not None for work in long)


def test_a_long_text_is_read_forward_in_chunks() -> None:
    session = session_of("forward")
    runner = LabelerRunner(session, name="fake")
    work = text("forward", [7] * 150)
    runner.admit([work])
    run_to_end(runner)
    assert [run.places for run in session.runs] == [64, 64, 23]


@pytest.mark.parametrize("kind", ["text", "forward"])
def test_a_text_may_be_longer_than_a_run(kind: str) -> None:
    work = alone(kind, [5] * 5000)
    assert work.logprobs is not None
    assert work.remaining <= 0


@pytest.mark.parametrize("kind", ["text", "places", "forward"])
def test_texts_that_are_one_piece_of_work_are_as_alone(kind: str) -> None:
    many = [[5] * length for length in (3, 0, 14, 7)]
    together, beside = texts(kind, many), text(kind, [6, 7])
    runner = LabelerRunner(session_of(kind), name="fake")
    runner.admit([together, beside])
    assert runner.used_rows == 5
    assert len(runner.run()) == 2
    assert runner.used_rows == 0
    assert together.logprobs is not None
    for i, each in enumerate(many):
        one = alone(kind, each)
        assert one.logprobs is not None
        assert together.logprobs[i].tobytes() == one.logprobs[0].tobytes()
    assert outcome(beside) == outcome(alone(kind, [6, 7]))


def test_labels_by_the_thousand_make_runs_smaller() -> None:
    session = FakeLabelerSession(num_labels=2048, labels_places=True)
    runner = LabelerRunner(session, name="fake")
    runner.admit([text("places", [5] * 1000) for _ in range(3)])
    run_to_end(runner)
    assert [run.texts for run in session.runs] == [2, 1]


def test_texts_whose_labels_take_long_share_no_run() -> None:
    session = session_of("places")
    runner = LabelerRunner(session, name="fake")
    works = [text("places", [5] * 10) for _ in range(5)]
    for work, third in zip(works, (1, 1, 2, 6, 1), strict=True):
        work.sums = third * (MAX_RUN_SUMS // 3)
    runner.admit(works)
    run_to_end(runner)
    assert [run.texts for run in session.runs] == [2, 1, 1, 1]


def test_a_text_goes_on_from_a_state_as_if_it_were_one() -> None:
    first = alone("forward", [5, 6, 7])
    rest = LabelWork(np.array([[8, 9]], np.uint16), np.array([2], np.int32), first.states)
    runner = LabelerRunner(session_of("forward"), name="fake")
    runner.admit([rest])
    run_to_end(runner)
    whole = alone("forward", [5, 6, 7, 8, 9])
    assert rest.logprobs is not None
    assert whole.logprobs is not None
    assert rest.logprobs.tobytes() == whole.logprobs.tobytes()


@pytest.mark.parametrize("kind", ["text", "places", "forward"])
def test_a_run_that_raises_fails_its_texts_and_no_other(kind: str) -> None:
    runner = LabelerRunner(session_of(kind), name="fake")
    bad, beside, other = text(kind, [LABELER_RAISES]), text(kind, [5]), text(kind, [5] * 40)
    runner.admit([bad, beside, other])
    errors = {id(work): error for work, error in run_to_end(runner)}
    assert isinstance(errors[id(bad)], ModelFailure)
    assert isinstance(errors[id(beside)], ModelFailure)
    assert errors[id(other)] is None
    assert outcome(other) == outcome(alone(kind, [5] * 40))


@pytest.mark.parametrize("kind", ["text", "places", "forward"])
def test_a_log_probability_that_is_not_finite_fails_that_text_alone(kind: str) -> None:
    runner = LabelerRunner(session_of(kind), name="fake")
    bad, beside = text(kind, [LABELER_GIVES_NAN, 5]), text(kind, [5])
    runner.admit([bad, beside])
    errors = {id(work): error for work, error in run_to_end(runner)}
    assert isinstance(errors[id(bad)], ModelFailure)
    assert errors[id(beside)] is None
    assert outcome(beside) == outcome(alone(kind, [5]))


pieces = st.lists(st.lists(st.integers(4, 41), max_size=70), min_size=1, max_size=3)
# A job of these texts arrives, the job of that place is given up, or a run may pass.
events = st.one_of(pieces, st.integers(0, 9), st.none())


@pytest.mark.parametrize("kind", ["text", "forward"])
@settings(max_examples=40, deadline=None)
@given(schedule=st.lists(events, min_size=1, max_size=16))
def test_in_any_schedule_every_job_ends_once_and_is_as_alone(
    kind: str, schedule: list[list[list[int]] | int | None]
) -> None:
    gate, inbox = Gate(), Inbox()
    scheduler = Scheduler(
        LabelerRunner(session_of(kind, gate), name="fake"),
        inbox,
        name="fake",
        max_rows=6,
        bounds=QueueBounds(requests=1_000_000, rows=1000, tokens=100_000),
        metrics=EngineMetrics(Metrics(), "fake"),
    )
    jobs: list[tuple[Job[LabelWork], list[list[int]]]] = []
    given_up: set[int] = set()
    with at_work(scheduler, gate):
        for event in schedule:
            if event is None:
                gate.let_through()
            elif isinstance(event, list):
                jobs.append((Job([text(kind, each) for each in event]), event))
                scheduler.submit(jobs[-1][0])
            elif event < len(jobs):
                given_up.add(event)
                scheduler.cancel(jobs[event][0])
        gate.open()
        inbox.wait_for(*(job for job, _ in jobs))
        eventually(lambda: scheduler.free and scheduler.load == 0)
        assert scheduler.alive
    assert sorted(map(id, inbox.jobs)) == sorted(id(job) for job, _ in jobs)
    for place, (job, each) in enumerate(jobs):
        if place in given_up:
            continue
        breaks = any(i in {LABELER_RAISES, LABELER_GIVES_NAN} for text in each for i in text)
        if breaks:
            assert failure(job) is ModelFailure
        elif failure(job) is None:  # else it shared a run with one that raised
            for work, its_ids in zip(job.work, each, strict=True):
                assert outcome(work) == outcome(alone(kind, its_ids))
