"""Promise 2 on real graphs, bit for bit: alone, batched, chunked and resumed are one."""

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle.language_model import LanguageModelBundle
from service.bundle.manifest import Precision
from service.bundle.text import BOS_ID, PAD_ID
from service.decoding.read_batch import ReadBatch
from service.decoding.rows import Continuation, ReadRow, TokenDetails, WriteRow
from service.decoding.sampling import SamplingParams
from service.observe.metrics import EngineMetrics, Metrics
from service.runtime.language_model import OnnxLanguageModelSession, States
from service.scheduling.admission import QueueBounds
from service.scheduling.language_model import LanguageModelRunner, TextWork
from service.scheduling.scheduler import Job, Scheduler
from service.settings import Settings
from service.tasks.language_model import LanguageModelEngine
from service.tasks.values import GenerateOptions, ScoreOptions
from tests.bundles import ALPHABET, in_memory, tiny_files
from training.config import LanguageModelNetworkConfig
from training.export.language_model import build_graphs
from training.networks.language_model import LanguageModel

CELLS = ("rnn", "gru", "lstm")
VOCAB = 4 + len(ALPHABET)
Kind = tuple[str, Precision]


@cache
def bundle_of(cell: str) -> LanguageModelBundle:
    return in_memory(*tiny_files(cell))


@cache
def session_of(cell: str, precision: Precision) -> OnnxLanguageModelSession:
    """The exported graphs of an untrained model."""
    return OnnxLanguageModelSession(bundle_of(cell), precision)


KINDS: list[Kind] = [(cell, precision) for cell in CELLS for precision in ("fp32", "int8")]

texts = st.lists(st.integers(3, VOCAB - 1), min_size=1, max_size=40)
kinds = st.sampled_from(KINDS)
several = settings(max_examples=30, deadline=None)


def read_row(ids: Sequence[int], start: States | None = None, **options: Any) -> ReadRow:
    """A row that counts every token of `ids` after the first."""
    tokens = np.array(ids, np.uint16)
    targets = np.append(tokens[1:], np.uint16(PAD_ID))
    return ReadRow(tokens, targets, start=start, wants_continuation=True, **options)


def read(kind: Kind, rows: Sequence[ReadRow], chunks: Sequence[int]) -> None:
    """Run the rows to their end, with the chunk sizes over and over."""
    batch = ReadBatch(session_of(*kind))
    for row in rows:
        batch.add(row)
    turn = 0
    while batch.rows:
        batch.run(chunks[turn % len(chunks)])
        turn += 1


def outcome(row: ReadRow) -> tuple[float, list[bytes], bytes, list[bytes]]:
    """Everything a read gives, to the bit."""
    assert row.continuation is not None
    told = TokenDetails.joined(row.details) if row.details else None
    columns = ("logprob", "entropy", "rank", "top_ids", "top_logprobs")
    return (
        row.logprob,
        [getattr(told, column).tobytes() for column in columns] if told else [],
        row.continuation.logprobs.tobytes(),
        [state.tobytes() for state in row.continuation.states],
    )


@several
@given(
    kind=kinds,
    many=st.lists(texts, min_size=1, max_size=12),
    chunks=st.lists(st.integers(1, 17), min_size=1, max_size=4),
    details=st.booleans(),
)
def test_a_text_alone_is_the_text_in_any_batch_and_any_chunking(
    kind: Kind, many: list[list[int]], chunks: list[int], details: bool
) -> None:
    top = 3 if details else None
    together = [read_row([BOS_ID, *ids], detail_top=top) for ids in many]
    read(kind, together, chunks)
    for ids, row in zip(many, together, strict=True):
        alone = read_row([BOS_ID, *ids], detail_top=top)
        read(kind, [alone], [64])
        assert outcome(alone) == outcome(row)


@several
@given(kind=kinds, first=texts, second=texts)
def test_the_score_of_two_texts_is_the_first_and_then_the_second_from_its_state(
    kind: Kind, first: list[int], second: list[int]
) -> None:
    whole = read_row([BOS_ID, *first, *second])
    read(kind, [whole], [64])
    start = read_row([BOS_ID, *first])
    read(kind, [start], [5])
    carried = start.continuation
    assert carried is not None
    rest = read_row(second, start=carried.states)
    read(kind, [rest], [3])
    assert rest.continuation is not None
    assert whole.continuation is not None
    terms = [start.logprob, float(carried.logprobs[second[0]]), rest.logprob]
    assert sum(terms) == pytest.approx(whole.logprob, abs=1e-9)
    assert rest.continuation.logprobs.tobytes() == whole.continuation.logprobs.tobytes()


def written(kind: Kind, jobs: Sequence[Job[TextWork]], cancel: Sequence[int] = ()) -> None:
    """Run jobs through a scheduler of their own, cancelling some of them right away."""
    ended = threading.Event()
    left = {id(job) for job in jobs}

    def deliver(done: list[Job[TextWork]]) -> None:
        for job in done:
            left.discard(id(job))
        if not left:
            ended.set()

    scheduler = Scheduler(
        LanguageModelRunner(session_of(*kind), 6, name="test"),
        deliver,
        name="test",
        max_rows=6,
        bounds=QueueBounds(requests=1_000_000, rows=1000, tokens=100_000),
        metrics=EngineMetrics(Metrics(), "fake"),
    )
    scheduler.start()
    try:
        for index, job in enumerate(jobs):
            scheduler.submit(job)
            if index in cancel:
                scheduler.cancel(job)
        assert ended.wait(30)
    finally:
        scheduler.stop()
    assert scheduler.free


def job_of(
    ids: list[int], seed: int, choices: int, max_tokens: int, temperature: float
) -> Job[TextWork]:
    params = SamplingParams(temperature=temperature, top_p=0.9 if seed % 2 else 1.0)
    rows = [
        WriteRow(params=params, seed=seed, choice=choice, max_tokens=max_tokens, detail_top=2)
        for choice in range(choices)
    ]
    read = read_row([BOS_ID, *ids])
    if seed % 2:
        # Not counted, so that one choice may read it in the steps of others.
        read = ReadRow(read.tokens, np.zeros_like(read.targets), wants_continuation=True)
    return Job([TextWork(read, rows)])


def answer(job: Job[TextWork]) -> list[tuple[list[int], list[bytes], str | None]]:
    return [
        (row.tokens, [x.top_logprobs.tobytes() for x in row.details], row.finish_reason)
        for row in job.work[0].write
    ]


requests = st.tuples(
    texts,
    st.integers(0, 2**40),
    st.integers(1, 3),
    st.integers(1, 30),
    st.sampled_from([0.0, 0.5, 1.0, 2.0]),
)


@several
@given(kind=kinds, wanted=st.lists(requests, min_size=1, max_size=9), data=st.data())
def test_a_choice_is_the_same_whatever_is_written_and_cancelled_beside_it(
    kind: Kind, wanted: list[tuple[list[int], int, int, int, float]], data: st.DataObject
) -> None:
    cancel = data.draw(st.sets(st.integers(0, len(wanted) - 1), max_size=len(wanted) - 1))
    jobs = [job_of(*request) for request in wanted]
    written(kind, jobs, sorted(cancel))
    for index, (request, job) in enumerate(zip(wanted, jobs, strict=True)):
        if index not in cancel:
            alone = job_of(*request)
            written(kind, [alone])
            assert answer(job) == answer(alone)


@several
@given(kind=kinds, ids=texts, split=st.integers(1, 29))
def test_writing_on_from_a_continuation_is_what_one_read_of_it_all_gives(
    kind: Kind, ids: list[int], split: int
) -> None:
    job = job_of(ids, seed=3, choices=1, max_tokens=30, temperature=1.0)
    written(kind, [job])
    row = job.work[0].write[0]
    tokens = row.tokens[: min(split, len(row.tokens) - 1)]
    again = read_row([BOS_ID, *ids, *tokens])
    read(kind, [again], [4])
    assert isinstance(again.continuation, Continuation)
    following = row.tokens[len(tokens)]
    (logprob,) = row.details[len(tokens)].logprob
    assert again.continuation.logprobs[following] == logprob


words = st.text(ALPHABET, max_size=6).map(lambda x: x * 5)
asked = st.tuples(
    st.lists(words, min_size=1, max_size=4),
    st.booleans(),  # to score, or to write on
    st.integers(0, 5),  # seed
    st.integers(0, 12),  # turns of the event loop before it arrives
    st.none() | st.integers(0, 30),  # turns before it is given up
)


async def ask(engine: LanguageModelEngine, texts: list[str], scores: bool, seed: int) -> Any:
    """An answer without what tells of the cache."""
    if scores:
        context = "the queen of hearts she made " if seed % 2 else ""
        options = ScoreOptions(tokens=seed % 3 == 0, eos=True)
        scored = await engine.score(texts, options, contexts=[context] * len(texts))
        return [replace(x, cached_tokens=0) for x in scored]
    how = SamplingParams(temperature=0.7, frequency_penalty=float(seed % 2), top_k=9)
    generated = await engine.generate(
        texts,
        GenerateOptions(
            max_tokens=12,
            sampling=how,
            seed=seed,
            n=1 + seed % 3,
            echo=seed % 2 == 1,
            logprobs=1 if seed > 2 else None,
        ),
    )
    return [replace(x, cached_tokens=0) for x in generated]


async def ask_all(engine: LanguageModelEngine, requests: Sequence[Any]) -> list[Any]:
    """Every answer, None for those that are given up."""

    async def one(texts: list[str], scores: bool, seed: int, turns: int, patience: Any) -> Any:
        for _ in range(turns):
            await asyncio.sleep(0)
        task = asyncio.create_task(ask(engine, texts, scores, seed))
        if patience is None:
            return await task
        for _ in range(patience):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        return None if task.cancelled() else task.result()

    return await asyncio.gather(*(one(*request) for request in requests))


async def with_engine(kind: Kind, requests: Sequence[Any], threads: int, cache_bytes: int) -> Any:
    cell, precision = kind
    settings = Settings(prefix_cache_bytes=cache_bytes, max_rows=5)
    session = session_of(cell, precision)
    engine = LanguageModelEngine(
        bundle_of(cell), session, settings, precision=precision, threads=threads
    )
    engine.start()
    try:
        answers = [await ask_all(engine, requests) for _ in range(2)]  # cold, then warm
    finally:
        await engine.stop()
    assert all(scheduler.free for scheduler in engine.workers.schedulers)
    return answers


@settings(max_examples=25, deadline=None)
@given(kind=kinds, requests=st.lists(asked, min_size=1, max_size=6), threads=st.integers(1, 3))
def test_neither_the_prefix_cache_nor_threads_nor_who_gives_up_shows_in_an_answer(
    kind: Kind, requests: list[Any], threads: int
) -> None:
    cached = asyncio.run(with_engine(kind, requests, threads, cache_bytes=100_000))
    for i, (texts, scores, seed, _, patience) in enumerate(requests):
        alone: list[Any] = []
        for text in texts:  # nothing shared, nothing known, nobody else
            one = [([text], scores, seed, 0, None)]
            answers = asyncio.run(with_engine(kind, one, 1, cache_bytes=0))
            alone += answers[0][0]
        for turn in cached:
            assert turn[i] == alone or (turn[i] is None and patience is not None)


@pytest.mark.parametrize("cell", CELLS)
def test_the_graph_has_no_operator_outside_the_default_domain(cell: str) -> None:
    model = LanguageModel(LanguageModelNetworkConfig.model_validate({"cell": cell}), VOCAB)
    for data in build_graphs(model).values():
        graph = onnx.load_model_from_string(data)
        bodies = [x.g for node in graph.graph.node for x in node.attribute]
        nodes = [node for part in (graph.graph, *bodies) for node in part.node]
        assert {node.domain for node in nodes} == {""}
        assert [x.domain for x in graph.opset_import] == [""]
