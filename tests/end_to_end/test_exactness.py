"""Promise 2 on real graphs, bit for bit: alone, batched, chunked and resumed are one."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle import BOS_ID, PAD_ID
from service.rows import Continuation, ReadBatch, ReadRow, TokenDetails, WriteRow
from service.sampling import SamplingParams
from service.scheduler import Job, Scheduler, Work
from service.session import IdArray, States
from training import onnx_graph
from training.config import ModelConfig
from training.export import OnnxModel
from training.language_model import LanguageModel

CELLS = ("rnn", "gru", "lstm")
VOCAB = 23
# An odd size, so that vector kernels meet their tails.
HIDDEN = 21


class GraphSession:
    """The exported graph of an untrained model behind the service's protocol."""

    vocab_size = VOCAB

    def __init__(self, cell: str) -> None:
        torch.manual_seed(5)
        model = LanguageModel(
            ModelConfig.model_validate(
                {"cell": cell, "num_layers": 2, "hidden_size": HIDDEN, "embedding_dim": 7}
            ),
            VOCAB,
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)
        self._graph = OnnxModel.load(onnx_graph.build(model), model.state_names)

    def initial_states(self, rows: int) -> States:
        return tuple(np.zeros((rows, HIDDEN), np.float32) for _ in self._graph.state_names)

    def pick(self, tokens: IdArray, lengths: Any, targets: IdArray, states: States) -> Any:
        picked, _, after = self._graph.run(tokens, targets, list(states), lengths)
        return picked, tuple(after)

    def read(self, tokens: IdArray, lengths: Any, states: States) -> Any:
        _, logprobs, after = self._graph.run(
            tokens, np.full_like(tokens, PAD_ID), list(states), lengths
        )
        return logprobs, tuple(after)


SESSIONS = {cell: GraphSession(cell) for cell in CELLS}

texts = st.lists(st.integers(3, VOCAB - 1), min_size=1, max_size=40)
cells = st.sampled_from(CELLS)
several = settings(max_examples=30, deadline=None)


def read_row(ids: Sequence[int], start: States | None = None, **options: Any) -> ReadRow:
    """A row that counts every token of `ids` after the first."""
    tokens = np.array(ids, np.uint16)
    targets = np.append(tokens[1:], np.uint16(PAD_ID))
    return ReadRow(tokens, targets, start=start, wants_continuation=True, **options)


def read(cell: str, rows: Sequence[ReadRow], chunks: Sequence[int]) -> None:
    """Run the rows to their end, with the chunk sizes over and over."""
    batch = ReadBatch(SESSIONS[cell])
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
    cell=cells,
    many=st.lists(texts, min_size=1, max_size=12),
    chunks=st.lists(st.integers(1, 17), min_size=1, max_size=4),
    details=st.booleans(),
)
def test_a_text_alone_is_the_text_in_any_batch_and_any_chunking(
    cell: str, many: list[list[int]], chunks: list[int], details: bool
) -> None:
    top = 3 if details else None
    together = [read_row([BOS_ID, *ids], detail_top=top) for ids in many]
    read(cell, together, chunks)
    for ids, row in zip(many, together, strict=True):
        alone = read_row([BOS_ID, *ids], detail_top=top)
        read(cell, [alone], [64])
        assert outcome(alone) == outcome(row)


@several
@given(cell=cells, first=texts, second=texts)
def test_the_score_of_two_texts_is_the_first_and_then_the_second_from_its_state(
    cell: str, first: list[int], second: list[int]
) -> None:
    whole = read_row([BOS_ID, *first, *second])
    read(cell, [whole], [64])
    start = read_row([BOS_ID, *first])
    read(cell, [start], [5])
    carried = start.continuation
    assert carried is not None
    rest = read_row(second, start=carried.states)
    read(cell, [rest], [3])
    assert rest.continuation is not None
    assert whole.continuation is not None
    terms = [start.logprob, float(carried.logprobs[second[0]]), rest.logprob]
    assert sum(terms) == pytest.approx(whole.logprob, abs=1e-9)
    assert rest.continuation.logprobs.tobytes() == whole.continuation.logprobs.tobytes()


def written(cell: str, jobs: Sequence[Job], cancel: Sequence[int] = ()) -> None:
    """Run jobs through a scheduler of their own, cancelling some of them right away."""
    ended = threading.Event()
    left = {id(job) for job in jobs}

    def deliver(done: list[Job]) -> None:
        for job in done:
            left.discard(id(job))
        if not left:
            ended.set()

    scheduler = Scheduler(
        SESSIONS[cell],
        deliver,
        name="test",
        max_rows=6,
        max_queue_rows=1000,
        max_queue_tokens=100_000,
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


def job_of(ids: list[int], seed: int, choices: int, max_tokens: int, temperature: float) -> Job:
    params = SamplingParams(temperature=temperature, top_p=0.9 if seed % 2 else 1.0)
    rows = [
        WriteRow(params=params, seed=seed, choice=choice, max_tokens=max_tokens, detail_top=2)
        for choice in range(choices)
    ]
    return Job([Work(read_row([BOS_ID, *ids]), rows)])


def answer(job: Job) -> list[tuple[list[int], list[float], str | None]]:
    return [(row.tokens, row.logprobs, row.finish_reason) for row in job.work[0].write]


requests = st.tuples(
    texts,
    st.integers(0, 2**40),
    st.integers(1, 3),
    st.integers(1, 30),
    st.sampled_from([0.0, 0.5, 1.0, 2.0]),
)


@several
@given(cell=cells, wanted=st.lists(requests, min_size=1, max_size=9), data=st.data())
def test_a_choice_is_the_same_whatever_is_written_and_cancelled_beside_it(
    cell: str, wanted: list[tuple[list[int], int, int, int, float]], data: st.DataObject
) -> None:
    cancel = data.draw(st.sets(st.integers(0, len(wanted) - 1), max_size=len(wanted) - 1))
    jobs = [job_of(*request) for request in wanted]
    written(cell, jobs, sorted(cancel))
    for index, (request, job) in enumerate(zip(wanted, jobs, strict=True)):
        if index not in cancel:
            alone = job_of(*request)
            written(cell, [alone])
            assert answer(job) == answer(alone)


@several
@given(cell=cells, ids=texts, split=st.integers(1, 29))
def test_writing_on_from_a_continuation_is_what_one_read_of_it_all_gives(
    cell: str, ids: list[int], split: int
) -> None:
    job = job_of(ids, seed=3, choices=1, max_tokens=30, temperature=1.0)
    written(cell, [job])
    row = job.work[0].write[0]
    tokens = row.tokens[: min(split, len(row.tokens) - 1)]
    again = read_row([BOS_ID, *ids, *tokens])
    read(cell, [again], [4])
    assert isinstance(again.continuation, Continuation)
    following = row.tokens[len(tokens)]
    assert float(again.continuation.logprobs[following]) == row.logprobs[len(tokens)]


@pytest.mark.parametrize("cell", CELLS)
def test_the_graph_has_no_operator_outside_the_default_domain(cell: str) -> None:
    model = LanguageModel(ModelConfig.model_validate({"cell": cell}), VOCAB)
    graph = onnx.load_model_from_string(onnx_graph.build(model))
    assert {node.domain for node in graph.graph.node} == {""}
    assert [x.domain for x in graph.opset_import] == [""]
