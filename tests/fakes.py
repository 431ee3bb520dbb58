"""Fakes: sessions whose answers depend on the whole history, a gate, an inbox and a client.

B batch, T time, V vocabulary.
"""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import httpx
import numpy as np
from fastapi import FastAPI

from service.bundle.arrays import BoolArray, Float32Array, Float64Array, Int32Array, Int64Array
from service.bundle.padding import padded_length
from service.bundle.text import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from service.decoding.rows import WriteRow
from service.decoding.sampling import NOISE_BLOCK, Sampler, SamplingParams, noise_block
from service.errors import ServiceError
from service.observe.metrics import EngineMetrics, Metrics
from service.runtime.encoder_decoder import Encoded, Step, Tensors
from service.runtime.language_model import LanguageModelSession, States
from service.scheduling.admission import QueueBounds
from service.scheduling.language_model import LanguageModelRunner, TextWork
from service.scheduling.scheduler import Job, Scheduler, WorkT

PATIENCE_S = 20.0  # a test that waits longer has failed


RARE = 11  # a token that a FakeSession seldom writes

_MODULUS = 65_521  # prime; the hash stays exact in float32
_POISONED = -1.0
_TABLE_ROWS = 97


class Gate:
    """Lets a worker's model runs through one by one, so that a test knows its progress."""

    def __init__(self) -> None:
        self._arrived = threading.Semaphore(0)
        self._permits = threading.Semaphore(0)
        self._open = threading.Event()

    def enter(self) -> None:
        """Called by the worker before a run."""
        if self._open.is_set():
            return
        self._arrived.release()
        assert self._permits.acquire(timeout=PATIENCE_S)

    def wait(self) -> None:
        """Wait until a run is at the gate."""
        assert self._arrived.acquire(timeout=PATIENCE_S)

    def step(self, runs: int = 1) -> None:
        """Let runs through, and wait until the next one stands at the gate."""
        for _ in range(runs):
            self._permits.release()
            self.wait()

    def let_through(self) -> None:
        """Let one run through, now or whenever it comes."""
        self._permits.release()

    def open(self) -> None:
        """Let everything through from now on."""
        self._open.set()
        self._permits.release(1000)


@dataclass(frozen=True)
class Run:
    """A model run: `pick` or `read`, its rows and its longest length."""

    kind: str
    rows: int
    time: int


@dataclass
class FakeSession:
    """Log-probabilities that depend on every token of the row so far, and on nothing else.

    States: a rolling hash [B, 1] and a count of tokens [B, 2, 2]. Results past a row's length are
    NaN, so that a test fails if they are used. `raises_at` and `nan_at` are tokens. One that adapts
    has a third state: how often each token has been read [B, V], which its answers depend on.
    """

    vocab_size: int = 12
    max_rows: int | None = None
    raises_at: int | None = None
    nan_at: int | None = None
    minus_infinity_at: int | None = None
    initial_states_raise: bool = False
    adapts: bool = False
    gate: Gate | None = None
    runs: list[Run] = field(default_factory=list)

    def __post_init__(self) -> None:
        scores = np.random.default_rng(5).normal(scale=2.0, size=(_TABLE_ROWS, self.vocab_size))
        # Rare ones, so that texts can be long: the end, and the token for faults.
        scores[:, [EOS_ID, RARE]] -= 4.0
        scores -= np.log(np.exp(scores).sum(axis=1, keepdims=True))
        self._table = scores.astype(np.float32)

    def initial_states(self, rows: int) -> States:
        if self.initial_states_raise:
            raise MemoryError("no memory for states")
        return self.zeros(rows)

    def zeros(self, rows: int) -> States:
        """The states of so many rows, whatever `initial_states` does."""
        learned = [(rows, self.vocab_size)] if self.adapts else []
        shapes: list[tuple[int, ...]] = [(rows, 1), (rows, 2, 2), *learned]
        return tuple(np.zeros(shape, np.float32) for shape in shapes)

    def pick(
        self, tokens: Int64Array, lengths: Int32Array, targets: Int64Array, states: States
    ) -> tuple[Float32Array, States]:
        logprobs, after = self._run("pick", tokens, lengths, states)
        return np.take_along_axis(logprobs, targets[..., None], axis=2)[..., 0], after

    def read(
        self, tokens: Int64Array, lengths: Int32Array, states: States
    ) -> tuple[Float32Array, States]:
        return self._run("read", tokens, lengths, states)

    def stepper(self, capacity: int) -> "FakeStepper":
        return FakeStepper(self, capacity)

    def _run(
        self, kind: str, tokens: Int64Array, lengths: Int32Array, states: States
    ) -> tuple[Float32Array, States]:
        if self.gate is not None:
            self.gate.enter()
        rows, longest = tokens.shape
        self.runs.append(Run(kind, rows, longest))
        assert self.max_rows is None or rows <= self.max_rows
        assert tokens.dtype == np.dtype(np.int64)
        assert lengths.dtype == np.dtype(np.int32)
        assert lengths.shape == (rows,)
        assert lengths.min() >= 1
        assert lengths.max() == longest
        assert [state.shape for state in states] == [state.shape for state in self.zeros(rows)]
        assert all(state.dtype == np.float32 for state in states)
        inside = np.arange(longest) < lengths[:, None]  # [B, T]
        if self.raises_at is not None and (tokens[inside] == self.raises_at).any():
            raise RuntimeError("the run broke")
        return self._logprobs(tokens, inside, states)

    def _logprobs(
        self, tokens: Int64Array, inside: BoolArray, states: States
    ) -> tuple[Float32Array, States]:
        hashes = states[0][:, 0].astype(np.int64)  # [B]
        learned = [state.copy() for state in states[2:]]  # [B, V] of those that adapt
        logprobs = np.full((*tokens.shape, self.vocab_size), np.nan, np.float32)  # [B, T, V]
        for t in range(tokens.shape[1]):
            after = (hashes * 31 + tokens[:, t] + 7) % _MODULUS
            poisoned = hashes == _POISONED
            if self.nan_at is not None:
                poisoned |= tokens[:, t] == self.nan_at
            hashes = np.where(inside[:, t], np.where(poisoned, _POISONED, after), hashes)
            hashes = hashes.astype(np.int64)
            useful = inside[:, t] & (hashes != _POISONED)
            answers = hashes
            for counts in learned:
                counts[inside[:, t], tokens[inside[:, t], t]] += 1
                # Whole numbers below 2 ** 24: their sum is exact in any order.
                answers = hashes + (counts @ np.arange(1.0, 1.0 + self.vocab_size)).astype(np.int64)
            logprobs[useful, t] = self._table[answers[useful] % _TABLE_ROWS]
            if self.minus_infinity_at is not None:
                logprobs[tokens[:, t] == self.minus_infinity_at, t, RARE] = -np.inf
        counts = states[1] + inside.sum(axis=1, dtype=np.float32)[:, None, None]
        return logprobs, (hashes.astype(np.float32)[:, None], counts, *learned)


class FakeStepper:
    """Steps of a fake session, in place; it counts as a read of one token a row."""

    def __init__(self, session: FakeSession, capacity: int) -> None:
        self._session = session
        self.capacity = capacity
        self.tokens = np.zeros(capacity, np.int64)
        self.logprobs = np.zeros((capacity, session.vocab_size), np.float32)
        # States before and after a step. Not from initial_states, which may raise here.
        self._sets: list[States] = [session.zeros(capacity) for _ in range(2)]

    @property
    def states(self) -> States:
        return self._sets[0]

    def step(self, rows: int) -> None:
        lengths = np.ones(rows, np.int32)
        states = tuple(state[:rows] for state in self.states)
        logprobs, after = self._session.read(self.tokens[:rows, None], lengths, states)
        self.logprobs[:rows] = logprobs[:, 0]
        # As in a real stepper: a view of a state is overwritten two steps later.
        self._sets.reverse()
        for state, new in zip(self.states, after, strict=True):
            state[:rows] = new


# --- encoder-decoders -----------------------------------------------------------------------------

# Source tokens at which a FakePairSession breaks.
ENCODER_RAISES, DECODER_RAISES, GIVES_NAN = 40, 41, 42


@dataclass(frozen=True)
class PairRun:
    """A run of an encoder, or of a decoder with several rows for each source."""

    kind: str
    sources: int
    rows: int  # of all sources together
    positions: int


@dataclass
class FakeEncoderDecoderSession:
    """Log-probabilities that depend on the source and every token of the row so far, alone.

    States: a rolling hash [B, 1] and a count of tokens [B, 2, 2]. Memory: the source's ids with the
    pads [N, M], and where it is [N, M]. Sources that hold certain tokens break a run, or give NaN.
    With a `cycle`, every target repeats after that many tokens. With `levels`, log-probabilities
    have so few values that most searches meet ties.
    """

    vocab_size: int = 10
    cycle: int | None = None
    levels: int | None = None
    gate: Gate | None = None
    runs: list[PairRun] = field(default_factory=list)

    def __post_init__(self) -> None:
        scores = np.random.default_rng(7).normal(scale=1.5, size=(_TABLE_ROWS, self.vocab_size))
        # As in real models, tokens that targets never have are rare. Targets are a few tokens long.
        scores[:, [PAD_ID, BOS_ID, UNK_ID]] -= 4.0
        if self.levels is not None:
            # Multiples of a power of two: their sums are exact.
            self._table = -np.floor(np.abs(scores) % self.levels).astype(np.float32) - 0.5
            return
        scores -= np.log(np.exp(scores).sum(axis=1, keepdims=True))
        self._table = scores.astype(np.float32)

    def encode(self, tokens: Int64Array, lengths: Int32Array) -> Encoded:
        if self.gate is not None:
            self.gate.enter()
        sources, positions = tokens.shape
        self.runs.append(PairRun("encode", sources, sources, positions))
        assert tokens.dtype == np.dtype(np.int64)
        assert lengths.dtype == np.dtype(np.int32)
        assert lengths.shape == (sources,)
        assert {padded_length(int(length)) for length in lengths} == {positions}
        inside = np.arange(positions) < lengths[:, None]  # [N, M]
        assert ((tokens != PAD_ID) == inside).all()
        assert (tokens[np.arange(sources), lengths - 1] == EOS_ID).all()
        if (tokens == ENCODER_RAISES).any():
            raise RuntimeError("the encoder broke")
        hashes = np.zeros(sources, np.int64)
        for column, there in zip(tokens.T, inside.T, strict=True):
            hashes = np.where(there, (hashes * 37 + column) % _MODULUS, hashes)
        states = (hashes.astype(np.float32)[:, None], np.zeros((sources, 2, 2), np.float32))
        return Encoded(states, (tokens.astype(np.float32), inside.astype(np.float32)))

    def step(
        self, tokens: Int64Array, states: Tensors, memory: Tensors, *, attention: bool
    ) -> Step:
        if self.gate is not None:
            self.gate.enter()
        ids, inside = memory
        sources, positions = ids.shape
        rows = len(tokens)
        self.runs.append(PairRun("step", sources, rows, positions))
        assert tokens.shape == (rows,)
        assert tokens.dtype == np.dtype(np.int64)
        assert rows % sources == 0
        assert [state.shape for state in states] == [(rows, 1), (rows, 2, 2)]
        assert all(tensor.dtype == np.float32 for tensor in (*states, *memory))
        if (ids == DECODER_RAISES).any():
            raise RuntimeError("the decoder broke")
        ids, inside = (np.repeat(tensor, rows // sources, axis=0) for tensor in memory)  # [B, M]
        counts = states[1] + 1.0
        before = states[0][:, 0].astype(np.int64)
        hashes = (before * 31 + tokens * 7 + ids.astype(np.int64).sum(axis=1)) % _MODULUS  # [B]
        logprobs = self._table[hashes % _TABLE_ROWS]  # [B, V]
        if self.cycle is not None:
            place = 4 + (states[1][:, 0, 0].astype(np.int64) % self.cycle)
            logprobs = np.minimum(logprobs - 8.0, -8.0).astype(np.float32)
            logprobs[np.arange(rows), place] = -0.01
        logprobs[(ids == GIVES_NAN).any(axis=1), -1] = np.nan
        after = (hashes.astype(np.float32)[:, None], counts)
        weights = None
        if attention:
            # Whole numbers below 2 ** 24: their sum is exact in any order.
            shares = ((hashes[:, None] + 13 * np.arange(positions)) % 97 + 1) * inside
            shares = shares.astype(np.float32)
            weights = shares / shares.sum(axis=1, keepdims=True)
        return Step(logprobs, after, weights)

    def sizes(self, kind: str) -> list[int]:
        """Rows of each run of a kind."""
        return [run.rows for run in self.runs if run.kind == kind]


# --- labelers -------------------------------------------------------------------------------------

# Tokens at which a FakeLabelerSession breaks.
LABELER_RAISES, LABELER_GIVES_NAN = 40, 41


@dataclass(frozen=True)
class LabelRun:
    """A run of a labeler."""

    texts: int
    places: int


@dataclass
class FakeLabelerSession:
    """Log-probabilities that depend on every token that was read, and on no other text.

    It reads whole texts, or forward; then its state is a rolling hash [N, 1]. Results past a text's
    end are NaN.
    """

    num_labels: int = 5
    labels_places: bool = False
    reads_forward: bool = False
    gate: Gate | None = None
    runs: list[LabelRun] = field(default_factory=list)

    def __post_init__(self) -> None:
        scores = np.random.default_rng(9).normal(scale=2.0, size=(_TABLE_ROWS, self.num_labels))
        scores -= np.log(np.exp(scores).sum(axis=1, keepdims=True))
        self._table = scores.astype(np.float32)

    def initial_states(self, rows: int) -> Tensors:
        return (np.zeros((rows, 1), np.float32),) if self.reads_forward else ()

    def label(
        self, tokens: Int64Array, lengths: Int32Array, states: Tensors = ()
    ) -> tuple[Float32Array, Tensors]:
        if self.gate is not None:
            self.gate.enter()
        texts, places = tokens.shape
        self.runs.append(LabelRun(texts, places))
        assert tokens.dtype == np.dtype(np.int64)
        assert lengths.dtype == np.dtype(np.int32)
        assert lengths.shape == (texts,)
        inside = np.arange(places) < lengths[:, None]  # [N, S]
        assert ((tokens != PAD_ID) == inside).all()
        if self.reads_forward:
            assert lengths.max() == places
            assert [state.shape for state in states] == [(texts, 1)]
            assert not (tokens == EOS_ID).any()
        else:
            assert states == ()
            assert {padded_length(int(length)) for length in lengths} == {places}
            assert (tokens[:, 0] == BOS_ID).all()
            assert (tokens[np.arange(texts), lengths - 1] == EOS_ID).all()
        if (tokens == LABELER_RAISES).any():
            raise RuntimeError("the labeler broke")
        return self._labelled(tokens, inside, states)

    def _labelled(
        self, tokens: Int64Array, inside: BoolArray, states: Tensors
    ) -> tuple[Float32Array, Tensors]:
        texts, places = tokens.shape
        hashes = states[0][:, 0].astype(np.int64) if states else np.zeros(texts, np.int64)
        passed = np.zeros((texts, places), np.int64)  # what was read up to each place
        for t in range(places):
            hashes = np.where(inside[:, t], (hashes * 31 + tokens[:, t] + 7) % _MODULUS, hashes)
            passed[:, t] = hashes
        after = (hashes.astype(np.float32)[:, None],) if states else ()
        if not self.labels_places:
            found = self._table[hashes % _TABLE_ROWS]
            found[(tokens == LABELER_GIVES_NAN).any(axis=1), -1] = np.nan
            return found, after
        seen = passed if states else passed * 3 + hashes[:, None]
        found = self._table[seen % _TABLE_ROWS]
        found[~inside] = np.nan
        found[tokens == LABELER_GIVES_NAN, -1] = np.nan
        return found, after


def sample(
    logprobs: Float32Array,
    params: Sequence[SamplingParams],
    uniform: Float64Array,
    counts: Int64Array | None = None,
) -> Int64Array:
    """Sample one token a row; `counts` [B, V]: how often the row has each token; None: never."""
    sampler = Sampler(params, logprobs.shape[1])
    if counts is None:
        counts = np.zeros(logprobs.shape, np.int64)
    return sampler.choose(logprobs, uniform, counts[sampler.adjusted])


class Inbox:
    """What a scheduler delivers."""

    def __init__(self, *, raises: int = 0) -> None:
        self.jobs: list[Job[Any]] = []
        self._raises = raises  # this many deliveries fail first
        self._news = threading.Condition()

    def __call__(self, jobs: list[Job[Any]]) -> None:
        with self._news:
            if self._raises:
                self._raises -= 1
                raise RuntimeError("nobody takes this")
            self.jobs.extend(jobs)
            self._news.notify_all()

    def wait_for(self, *jobs: Job[Any]) -> None:
        """Wait until all the jobs have been delivered."""
        with self._news:
            assert self._news.wait_for(lambda: set(jobs) <= set(self.jobs), PATIENCE_S)


@contextmanager
def running(
    session: LanguageModelSession,
    inbox: Callable[[list[Job[TextWork]]], None],
    *,
    adapting: LanguageModelSession | None = None,
    max_rows: int = 8,
    max_queue_rows: int = 100,
    max_queue_tokens: int = 10_000,
) -> Iterator[Scheduler[TextWork]]:
    """A running scheduler of texts, of which some may adapt."""
    scheduler = Scheduler(
        LanguageModelRunner(session, max_rows, name="fake", adapting=adapting),
        inbox,
        name="fake",
        max_rows=max_rows,
        bounds=QueueBounds(requests=1_000_000, rows=max_queue_rows, tokens=max_queue_tokens),
        metrics=EngineMetrics(Metrics(), "fake"),
    )
    with at_work(scheduler, getattr(session, "gate", None)):
        yield scheduler


@contextmanager
def at_work(scheduler: Scheduler[WorkT], gate: Gate | None) -> Iterator[None]:
    """Start a scheduler; stop it at the end, and check that it holds no row."""
    scheduler.start()
    try:
        yield
    finally:
        if gate is not None:
            gate.open()
        scheduler.stop()
    assert scheduler.free


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds, by polling."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


# --- the answers of a request that runs alone, one token at a time ------------------------------


@dataclass(frozen=True)
class Answer:
    """The result of a piece of work, compared to the bit."""

    logprob: float
    choices: tuple[tuple[tuple[int, ...], str | None, int], ...]


def answer(work: TextWork) -> Answer:
    """The result that the scheduler filled in."""
    rows = work.write
    return Answer(
        work.read.logprob,
        tuple((tuple(x.tokens), x.finish_reason, x.stop_tokens) for x in rows),
    )


def answer_alone(work: TextWork, session: FakeSession) -> Answer:
    """The same result by definition: without batches, chunks or rows.py."""
    states = session.initial_states(1)
    logprob = 0.0
    after = np.empty(0, np.float32)
    for token, target in zip(work.read.tokens, work.read.targets, strict=True):
        after, states = _next(session, int(token), states)
        if target != PAD_ID:
            logprob += float(after[target])
    return Answer(logprob, tuple(_write_alone(row, session, after, states) for row in work.write))


def _write_alone(
    row: WriteRow, session: FakeSession, after: Float32Array, states: States
) -> tuple[tuple[int, ...], str | None, int]:
    tokens: list[int] = []
    while len(tokens) < row.max_tokens:
        block, offset = divmod(len(tokens), NOISE_BLOCK)
        uniform = noise_block(row.seed, row.choice, block)[offset : offset + 1]
        counts = np.bincount(np.array(tokens, np.int64), minlength=session.vocab_size)
        token = int(sample(after[None], [row.params], uniform, counts[None])[0])
        tokens.append(token)
        if token == EOS_ID:
            return tuple(tokens), "stop", 1
        for stop in row.stop:
            if tuple(tokens[-len(stop) :]) == stop:
                return tuple(tokens), "stop", len(stop)
        after, states = _next(session, token, states)
    return tuple(tokens), "length", 0


def _next(session: FakeSession, token: int, states: States) -> tuple[Float32Array, States]:
    logprobs, states = session.read(np.array([[token]]), np.array([1], np.int32), states)
    return logprobs[0, 0], states


def failure(job: Job[Any]) -> type[ServiceError] | None:
    """The class of a job's error."""
    return None if job.error is None else type(job.error)


# --- HTTP ----------------------------------------------------------------------------------------


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


class AppClient:
    """An application in its lifespan and a client of it, in one event loop, without sockets."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        self._runner = asyncio.Runner()
        self._lifespan = app.router.lifespan_context(app)
        # A bug must show as a client sees it: as an answer.
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")

    def __enter__(self) -> Self:
        self._runner.run(self._start())
        return self

    async def _start(self) -> None:
        await self._lifespan.__aenter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._runner.run(self._end())
        self._runner.close()

    async def _end(self) -> None:
        await self.http.aclose()
        await self._lifespan.__aexit__(None, None, None)

    def run(self, work: Callable[[httpx.AsyncClient], Any]) -> Any:
        """Await the result of a function of the client."""
        return self._runner.run(work(self.http))

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        response: httpx.Response = self.run(lambda http: http.request(method, path, **options))
        return response

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.request("POST", path, **options)

    def ask(self, path: str, **body: Any) -> Any:
        """The answer to a request that must succeed."""
        response = self.post(path, json=body)
        assert response.status_code == httpx.codes.OK, response.text
        return json.loads(response.content, parse_constant=_refuse)

    def together(self, path: str, bodies: Sequence[Any]) -> list[httpx.Response]:
        """Many requests at the same time."""

        async def gather(http: httpx.AsyncClient) -> list[httpx.Response]:
            return await asyncio.gather(*(http.post(path, json=body) for body in bodies))

        responses: list[httpx.Response] = self.run(gather)
        return responses
