"""The scheduler with any runner: work is conserved, an error takes a job along, death is told."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import EngineStopped, ModelFailure, QueueFull, ServiceError
from service.observe.metrics import EngineMetrics, Metrics
from service.scheduling.admission import QueueBounds
from service.scheduling.scheduler import Job, Scheduler
from tests.fakes import Gate, Inbox, at_work, eventually, failure

MAX_ROWS = 5


@dataclass(eq=False)
class Piece:
    """Work that ends after so many iterations, well or not."""

    rows: int = 1
    iterations: int = 1
    fails: bool = False
    queued_tokens: int = 1
    first_token_at: float | None = None
    written_tokens: int = 0
    ran: int = 0


class CountingRunner:
    """Holds pieces and counts what it does to them."""

    def __init__(self, gate: Gate, *, raises_in: str | None = None) -> None:
        self.dropped: list[Piece] = []
        self._gate = gate
        self._pieces: list[Piece] = []
        self._raises_in = raises_in

    @property
    def used_rows(self) -> int:
        return sum(piece.rows for piece in self._pieces)

    @property
    def free(self) -> bool:
        return not self._pieces

    def admit(self, work: Sequence[Piece]) -> None:
        self._may_raise("admit")
        self._pieces.extend(work)

    def run(self) -> list[tuple[Piece, ServiceError | None]]:
        if self._pieces:
            self._gate.enter()
        assert self.used_rows <= MAX_ROWS or len(self._pieces) == 1
        self._may_raise("run")
        for piece in self._pieces:
            piece.ran += 1
        ended = [piece for piece in self._pieces if piece.ran == piece.iterations]
        self._pieces = [piece for piece in self._pieces if piece not in ended]
        return [(piece, ModelFailure("broken") if piece.fails else None) for piece in ended]

    def drop(self, work: Sequence[Piece]) -> None:
        self._may_raise("drop")
        self.dropped += work
        self._pieces = [piece for piece in self._pieces if piece not in work]

    def clear(self) -> None:
        self._pieces.clear()

    def _may_raise(self, where: str) -> None:
        if self._raises_in == where:
            raise RuntimeError("a bug in the runner")


def scheduler_of(runner: CountingRunner, inbox: Inbox) -> Scheduler[Piece]:
    return Scheduler(
        runner,
        inbox,
        name="fake",
        max_rows=MAX_ROWS,
        bounds=QueueBounds(requests=1_000_000, rows=12, tokens=100),
        metrics=EngineMetrics(Metrics(), "fake"),
    )


def test_an_error_of_one_piece_fails_its_job_and_drops_the_others_of_it() -> None:
    gate, inbox = Gate(), Inbox()
    runner = CountingRunner(gate)
    scheduler = scheduler_of(runner, inbox)
    active, queued, beside = Piece(iterations=9), Piece(rows=3), Piece(iterations=4)
    bad, good = Job([Piece(iterations=2, fails=True), active, queued]), Job([beside])
    with at_work(scheduler, gate):
        other = Job([Piece(rows=2, iterations=3)])  # the job has two of its pieces beside this
        scheduler.submit(other)
        gate.wait()
        scheduler.submit(bad)
        scheduler.submit(good)
        gate.open()
        inbox.wait_for(other, bad, good)
        assert scheduler.free
    assert failure(bad) is ModelFailure
    assert runner.dropped == [active]
    assert (active.ran, queued.ran) == (2, 0)
    assert [failure(job) for job in (other, good)] == [None, None]
    assert beside.ran == 4
    assert len(inbox.jobs) == 3


@pytest.mark.parametrize("fails", [(True, False), (False, True), (True, True)])
def test_a_job_whose_pieces_end_in_one_iteration_fails_once_where_one_of_them_fails(
    fails: tuple[bool, bool],
) -> None:
    gate, inbox = Gate(), Inbox()
    runner = CountingRunner(gate)
    scheduler = scheduler_of(runner, inbox)
    job, after = Job([Piece(fails=x) for x in fails]), Job([Piece()])
    with at_work(scheduler, gate):
        gate.open()
        scheduler.submit(job)
        inbox.wait_for(job)
        scheduler.submit(after)
        inbox.wait_for(after)
    assert [failure(x) for x in inbox.jobs] == [ModelFailure, None]


@pytest.mark.parametrize("where", ["admit", "run", "drop"])
def test_a_runner_that_raises_ends_the_worker_and_everyone_who_waits_is_told(where: str) -> None:
    gate, inbox = Gate(), Inbox()
    scheduler = scheduler_of(CountingRunner(gate, raises_in=where), inbox)
    # Whichever method raises, something is active then, and something waits for room.
    jobs = [Job([Piece(fails=where == "drop"), Piece(iterations=9)]), Job([Piece(rows=4)])]
    with at_work(scheduler, gate):
        for job in jobs:
            scheduler.submit(job)
        gate.open()
        inbox.wait_for(*jobs)
        eventually(lambda: not scheduler.alive)
        with pytest.raises(EngineStopped):
            scheduler.submit(Job([Piece()]))
        assert scheduler.load == 0
    assert sorted(map(id, inbox.jobs)) == sorted(map(id, jobs))  # each exactly once
    expected = ModelFailure if where == "drop" else EngineStopped
    assert [failure(job) for job in jobs] == [expected, EngineStopped]


def test_a_cancelled_job_is_told_even_if_it_cannot_leave() -> None:
    gate, inbox = Gate(), Inbox()
    scheduler = scheduler_of(CountingRunner(gate, raises_in="drop"), inbox)
    job = Job([Piece(iterations=9)])
    with at_work(scheduler, gate):
        scheduler.submit(job)
        gate.wait()
        scheduler.cancel(job)
        gate.open()
        inbox.wait_for(job)
        eventually(lambda: not scheduler.alive)


def test_a_scheduler_is_not_free_while_its_runner_holds_anything() -> None:
    runner = CountingRunner(Gate())
    scheduler = scheduler_of(runner, Inbox())
    assert scheduler.free
    runner.admit([Piece()])
    assert not scheduler.free


def test_the_load_is_what_waits_and_what_is_held() -> None:
    gate, inbox = Gate(), Inbox()
    scheduler = scheduler_of(CountingRunner(gate), inbox)
    jobs = [Job([Piece(rows=3), Piece(rows=2)]), Job([Piece(rows=4)]), Job([Piece(rows=2)])]
    with at_work(scheduler, gate):
        scheduler.submit(jobs[0])
        gate.wait()
        assert scheduler.load == 5
        for job in jobs[1:]:
            scheduler.submit(job)
        assert scheduler.load == 11
        gate.step()
        assert scheduler.load == 6  # one waits for the other
        gate.open()
        inbox.wait_for(*jobs)
        assert scheduler.load == 0


pieces = st.builds(
    Piece,
    rows=st.integers(1, MAX_ROWS + 2),
    iterations=st.integers(1, 5),
    fails=st.sampled_from([False, False, False, True]),
)
# A job of these pieces arrives, the job of that place is given up, or an iteration may pass.
events = st.one_of(st.lists(pieces, min_size=1, max_size=3), st.integers(0, 9), st.none())


@settings(max_examples=100, deadline=None)
@given(schedule=st.lists(events, min_size=1, max_size=24))
def test_in_any_schedule_rows_are_conserved_and_every_job_ends_once(
    schedule: list[list[Piece] | int | None],
) -> None:
    gate, inbox = Gate(), Inbox()
    runner = CountingRunner(gate)
    scheduler = scheduler_of(runner, inbox)
    jobs: list[Job[Piece]] = []
    given_up: set[int] = set()
    with at_work(scheduler, gate):
        for event in schedule:
            if event is None:
                gate.let_through()
            elif isinstance(event, list):
                job = Job(event)
                try:
                    scheduler.submit(job)
                except QueueFull:
                    continue
                jobs.append(job)
            elif event < len(jobs):
                given_up.add(event)
                scheduler.cancel(jobs[event])
        gate.open()
        inbox.wait_for(*jobs)
        # What is left of a failed or cancelled job is dropped with the next turn.
        eventually(lambda: scheduler.free and scheduler.load == 0)
        assert scheduler.alive
    assert sorted(map(id, inbox.jobs)) == sorted(map(id, jobs))
    for place, job in enumerate(jobs):
        assert all(piece.ran <= piece.iterations for piece in job.work)
        if place not in given_up:
            fails = any(piece.fails for piece in job.work)
            assert failure(job) is (ModelFailure if fails else None)
            assert fails or all(piece.ran == piece.iterations for piece in job.work)
