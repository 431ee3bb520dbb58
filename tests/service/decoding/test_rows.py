"""Rows that read and rows that write, on a session whose answers tell the whole history."""

import math
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle.arrays import BoolArray, Float32Array, Int64Array
from service.bundle.text import BOS_ID, EOS_ID, PAD_ID
from service.decoding.read_batch import _MAX_POSITIONS, _MAX_RESULT_FLOATS, ReadBatch
from service.decoding.rows import Continuation, ReadRow, TokenDetails, WriteRow
from service.decoding.sampling import SamplingParams
from service.decoding.write_batch import WriteBatch
from service.errors import ModelFailure
from service.runtime.language_model import States
from service.scheduling.language_model import TextWork
from tests.fakes import RARE, FakeSession, Run, answer, answer_alone

several = settings(max_examples=40, deadline=None)

texts = st.lists(st.integers(3, 11), min_size=1, max_size=30)
chunk_sizes = st.lists(st.integers(1, 13), min_size=1, max_size=4)

HOWS = [
    SamplingParams(),
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=2.0, top_k=4),
    SamplingParams(frequency_penalty=2.0),
    SamplingParams(presence_penalty=3.0, logit_bias=((EOS_ID, -50.0),)),
    SamplingParams(logit_bias=((5, 4.0), (6, -4.0)), top_p=0.7, temperature=0.8),
]


def counted(ids: Sequence[int], *, top: int | None = None, goes_on: bool = False) -> ReadRow:
    """A row that counts every token after bos."""
    tokens = np.array([BOS_ID, *ids], np.uint16)
    targets = np.append(tokens[1:], np.uint16(PAD_ID))
    return ReadRow(tokens, targets, detail_top=top, wants_continuation=goes_on)


def writer(
    *,
    choice: int = 0,
    max_tokens: int = 10,
    stop: tuple[tuple[int, ...], ...] = (),
    how: SamplingParams = SamplingParams(),
    top: int | None = None,
) -> WriteRow:
    return WriteRow(
        params=how, seed=1, choice=choice, max_tokens=max_tokens, stop=stop, detail_top=top
    )


def read_to_the_end(batch: ReadBatch, chunks: Sequence[int]) -> list[ReadRow]:
    """The rows in the order in which they were done."""
    finished = []
    turn = 0
    while batch.rows:
        done, failed = batch.run(chunks[turn % len(chunks)])
        assert not failed
        finished += done
        turn += 1
    return finished


def told(row: ReadRow) -> list[bytes]:
    """The details, to the bit."""
    joined = TokenDetails.joined(row.details)
    return [
        joined.logprob.tobytes(),
        joined.entropy.tobytes(),
        joined.rank.tobytes(),
        joined.top_ids.tobytes(),
        joined.top_logprobs.tobytes(),
    ]


@several
@given(ids=texts, chunks=chunk_sizes, goes_on=st.booleans(), top=st.none() | st.integers(0, 3))
def test_a_read_is_the_same_in_any_chunking(
    ids: list[int], chunks: list[int], goes_on: bool, top: int | None
) -> None:
    session = FakeSession()
    whole, cut = (counted(ids, top=top, goes_on=goes_on) for _ in range(2))
    for row, sizes in ((whole, [1000]), (cut, chunks)):
        batch = ReadBatch(session)
        batch.add(row)
        assert read_to_the_end(batch, sizes) == [row]
    assert whole.logprob == cut.logprob
    assert whole.logprob == answer_alone(TextWork(counted(ids)), session).logprob
    if top is not None:
        assert told(whole) == told(cut)
    if goes_on:
        assert whole.continuation is not None
        assert cut.continuation is not None
        assert whole.continuation.logprobs.tobytes() == cut.continuation.logprobs.tobytes()
        assert whole.continuation.states[0].tobytes() == cut.continuation.states[0].tobytes()
    else:
        assert whole.continuation is None


def test_the_order_in_which_a_text_is_summed_does_not_depend_on_its_chunks() -> None:
    """Terms of such different sizes that any other order rounds otherwise."""
    session = FakeSession()
    sizes = np.random.default_rng(2).uniform(-14.0, 2.0, session._table.shape)
    session._table = (-(10.0**sizes)).astype(np.float32)
    ids = np.random.default_rng(3).integers(4, 12, 400).tolist()
    totals = set()
    for chunk in (1, 7, 64, 1000):
        batch = ReadBatch(session)
        row = counted(ids)
        batch.add(row)
        read_to_the_end(batch, [chunk])
        totals.add(row.logprob)
    assert totals == {answer_alone(TextWork(counted(ids)), session).logprob}


@several
@given(arrivals=st.lists(st.tuples(texts, st.integers(0, 5)), min_size=1, max_size=8))
def test_rows_that_join_at_different_times_read_what_they_read_alone(
    arrivals: list[tuple[list[int], int]],
) -> None:
    session = FakeSession()
    batch = ReadBatch(session)
    rows = []
    for ids, runs_before in arrivals:
        for _ in range(runs_before):
            if batch.rows:
                batch.run(3)
        rows.append(counted(ids))
        batch.add(rows[-1])
    read_to_the_end(batch, [3])
    alone = [answer_alone(TextWork(counted(ids)), session).logprob for ids, _ in arrivals]
    assert [row.logprob for row in rows] == alone


def test_a_run_takes_no_more_than_the_chunk_and_no_more_than_is_left() -> None:
    session = FakeSession()
    batch = ReadBatch(session)
    batch.add(counted([5] * 9))
    batch.add(counted([5] * 3))
    read_to_the_end(batch, [4])
    assert session.runs == [Run("pick", 2, 4), Run("pick", 1, 4), Run("pick", 1, 2)]


def test_a_run_lasts_until_its_shortest_row_ends_but_is_no_shorter_than_16() -> None:
    session = FakeSession()
    batch = ReadBatch(session)
    for ids in ([5] * 3, [5] * 29, [5] * 60):
        batch.add(counted(ids))
    read_to_the_end(batch, [64])
    # 4 tokens, 30 and 61: to 16, to the end of the second, and the rest.
    assert session.runs == [Run("pick", 3, 16), Run("pick", 2, 16), Run("pick", 1, 29)]
    session.runs.clear()
    batch.add(counted([5] * 39))
    batch.add(counted([5] * 59))
    read_to_the_end(batch, [64])
    assert session.runs == [Run("pick", 2, 40), Run("pick", 1, 20)]


def test_only_the_run_that_gives_the_continuation_asks_for_whole_distributions() -> None:
    session = FakeSession()
    batch = ReadBatch(session)
    batch.add(counted([5] * 9, goes_on=True))
    read_to_the_end(batch, [4])
    assert [run.kind for run in session.runs] == ["pick", "pick", "read"]


def test_the_result_of_a_run_is_bounded_whatever_the_vocabulary() -> None:
    session = FakeSession(vocab_size=60_000)
    batch = ReadBatch(session)
    for _ in range(8):
        batch.add(counted([5] * 20, top=0))
    read_to_the_end(batch, [64])
    assert all(run.rows * run.time * 60_000 <= _MAX_RESULT_FLOATS for run in session.runs)
    assert max(run.time for run in session.runs) == _MAX_RESULT_FLOATS // (8 * 60_000)


def test_the_positions_of_a_run_are_bounded_whatever_the_rows() -> None:
    session = FakeSession()
    batch = ReadBatch(session)
    for _ in range(100):
        batch.add(counted([5] * 39))
    read_to_the_end(batch, [64])
    per_run = _MAX_POSITIONS // 100
    assert [run.time for run in session.runs] == [per_run] * (40 // per_run)


def test_nothing_moves_when_a_run_raises() -> None:
    session = FakeSession(raises_at=RARE)
    batch = ReadBatch(session)
    good, bad = counted([4, 5, 6, 7, 8, 4]), counted([4, 4, 4, RARE])
    batch.add(good)
    batch.add(bad)
    batch.run(2)
    with pytest.raises(RuntimeError, match="the run broke"):
        batch.run(4)
    assert (good.position, bad.position) == (2, 2)
    batch.remove([bad])
    assert read_to_the_end(batch, [4]) == [good]
    expected = answer_alone(TextWork(counted([4, 5, 6, 7, 8, 4])), FakeSession()).logprob
    assert good.logprob == expected


@pytest.mark.parametrize("goes_on", [False, True])
@pytest.mark.parametrize("top", [None, 2])
def test_nan_fails_the_row_that_meets_it_and_no_other(goes_on: bool, top: int | None) -> None:
    session = FakeSession(nan_at=RARE)
    batch = ReadBatch(session)
    good, bad = counted([4, 5, 6], goes_on=goes_on), counted([4, RARE, 6], top=top, goes_on=goes_on)
    batch.add(bad)
    batch.add(good)
    done, failed = batch.run(64)
    assert done == [good]
    assert [(row, type(error)) for row, error in failed] == [(bad, ModelFailure)]
    assert batch.rows == []
    assert good.logprob == answer_alone(TextWork(counted([4, 5, 6])), FakeSession()).logprob


@given(targets=st.lists(st.sampled_from([PAD_ID, 1, 255, 256, 65_535]), max_size=12))
def test_what_is_not_counted_is_the_pads_before_the_first_target(targets: list[int]) -> None:
    ids = np.array(targets, np.uint16)
    row = ReadRow(np.full(len(ids), BOS_ID, np.uint16), ids)
    assert row.uncounted == next((i for i, x in enumerate(targets) if x), len(targets))


def test_nan_after_an_uncounted_prompt_fails_it_before_anything_is_written() -> None:
    batch = ReadBatch(FakeSession(nan_at=RARE))
    tokens = np.array([BOS_ID, 4, RARE], np.uint16)
    row = ReadRow(tokens, np.full_like(tokens, PAD_ID), wants_continuation=True)
    batch.add(row)
    done, failed = batch.run(64)
    assert done == []
    assert [failed_row for failed_row, _ in failed] == [row]
    assert row.continuation is None


def test_an_infinity_among_the_alternatives_fails_the_row_too() -> None:
    batch = ReadBatch(FakeSession(minus_infinity_at=4))
    row = counted([4, 6, 6], top=2)
    batch.add(row)
    done, failed = batch.run(64)
    assert done == []
    assert [failed_row for failed_row, _ in failed] == [row]


def test_details_are_those_of_the_distribution() -> None:
    logprobs = np.log(np.array([[0.5, 0.25, 0.125, 0.125], [0.1, 0.2, 0.3, 0.4]])).astype(
        np.float32
    )
    details = TokenDetails.of(logprobs, np.array([3, 1]), top=3)
    assert details.logprob.tolist() == [logprobs[0, 3], logprobs[1, 1]]
    assert details.rank.tolist() == [3, 3]
    assert details.top_ids.tolist() == [[0, 1, 2], [3, 2, 1]]
    assert details.top_logprobs.tolist() == [
        logprobs[0, :3].tolist(),
        logprobs[1, [3, 2, 1]].tolist(),
    ]
    assert details.entropy[0] == pytest.approx(1.75 * math.log(2), abs=1e-6)


def continued(session: FakeSession, ids: Sequence[int]) -> ReadRow:
    batch = ReadBatch(session)
    row = counted(ids, goes_on=True)
    batch.add(row)
    read_to_the_end(batch, [64])
    return row


def write_to_the_end(batch: WriteBatch) -> None:
    while batch.rows:
        batch.sample()
        if batch.rows:
            assert not batch.run()


def test_a_batch_of_every_size_takes_no_more_memory_than_the_largest() -> None:
    session = FakeSession()
    read = continued(session, [3, 4, 5])
    assert read.continuation is not None
    batch = WriteBatch(session, 256)
    for i in range(256):
        batch.add(writer(choice=i, max_tokens=1 + i), read.continuation)
    tracemalloc.start()
    try:
        write_to_the_end(batch)
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # What each size computes in, kept for each size, is 17 bytes for each row and token.
    assert grown < 17 * session.vocab_size * sum(range(256)) / 4


@several
@given(
    arrivals=st.lists(
        st.tuples(texts, st.integers(1, 3), st.integers(1, 20), st.integers(0, 4)),
        min_size=1,
        max_size=5,
    )
)
def test_rows_that_join_at_different_times_write_what_they_write_alone(
    arrivals: list[tuple[list[int], int, int, int]],
) -> None:
    session = FakeSession()
    batch = WriteBatch(session, 4)
    work = []
    for ids, choices, max_tokens, steps_before in arrivals:
        for _ in range(steps_before):
            if batch.rows:
                batch.sample()
            if batch.rows:
                batch.run()
        read = continued(session, ids)
        assert read.continuation is not None
        writes = [writer(choice=i, max_tokens=max_tokens) for i in range(choices)]
        for write in writes:
            batch.add(write, read.continuation)
        work.append(TextWork(read, writes))
    write_to_the_end(batch)
    for piece in work:
        assert answer(piece) == answer_alone(piece, session)


@several
@given(
    arrivals=st.lists(
        st.tuples(st.integers(0, 6), st.sampled_from(HOWS), st.integers(1, 20), st.booleans()),
        min_size=1,
        max_size=9,
    ),
    prompt=texts,
)
def test_rows_with_different_options_write_what_they_write_alone(
    arrivals: list[tuple[int, SamplingParams, int, bool]], prompt: list[int]
) -> None:
    session = FakeSession()
    read = continued(session, prompt)
    assert read.continuation is not None
    batch = WriteBatch(session, 1)  # it grows, with the counts that penalties need
    rows = []
    for i, (steps_before, how, max_tokens, stops) in enumerate(arrivals):
        for _ in range(steps_before):
            if batch.rows:
                batch.sample()
            if batch.rows:
                batch.run()
        stop = ((5, 6), (9,)) if stops else ()
        rows.append(writer(choice=i, max_tokens=max_tokens, how=how, stop=stop))
        batch.add(rows[-1], read.continuation)
    write_to_the_end(batch)
    alone = [
        writer(choice=x.choice, max_tokens=x.max_tokens, how=x.params, stop=x.stop) for x in rows
    ]
    expected = answer_alone(TextWork(counted(prompt), alone), session)
    assert answer(TextWork(read, rows)).choices == expected.choices


def test_nan_while_writing_fails_that_row_and_no_other() -> None:
    """The row that writes the token is poisoned by it."""
    clean = FakeSession()
    start = continued(clean, [5]).continuation
    assert start is not None
    alone = [writer(choice=i, max_tokens=20) for i in range(6)]
    batch = WriteBatch(clean, 4)
    for row in alone:
        batch.add(row, start)
    write_to_the_end(batch)
    meets = [RARE in row.tokens[:-1] for row in alone]
    assert 0 < sum(meets) < len(meets)

    rows = [writer(choice=i, max_tokens=20) for i in range(6)]
    batch = WriteBatch(FakeSession(nan_at=RARE), 4)
    for row in rows:
        batch.add(row, start)
    failed = []
    while batch.rows:
        batch.sample()
        if batch.rows:
            failed += batch.run()
    assert {id(row) for row, _ in failed} == {
        id(row) for row, bad in zip(rows, meets, strict=True) if bad
    }
    for row, twin, bad in zip(rows, alone, meets, strict=True):
        if not bad:
            assert row.tokens == twin.tokens


class Scripted(FakeSession):
    """Hardly anything but the tokens of the script, one after another."""

    script: Sequence[int] = ()

    def _logprobs(
        self, tokens: Int64Array, inside: BoolArray, states: States
    ) -> tuple[Float32Array, States]:
        _, after = super()._logprobs(tokens, inside, states)
        logprobs = np.full((*tokens.shape, self.vocab_size), -40.0, np.float32)
        for row, count in enumerate(after[1][:, 0, 0].astype(int).tolist()):
            logprobs[row, -1, self.script[count % len(self.script)]] = 0.0
        return logprobs, after


def written(tokens: Sequence[int], *, max_tokens: int) -> WriteRow:
    """A row with stop sequences that has written the tokens."""
    session = Scripted()
    session.script = tokens
    row = writer(max_tokens=max_tokens, stop=((5, 6), (7,)))
    logprobs = np.full(session.vocab_size, -40.0, np.float32)
    logprobs[tokens[0]] = 0.0
    batch = WriteBatch(session, 1)
    batch.add(row, Continuation(session.initial_states(1), logprobs))
    for i in range(len(tokens)):
        assert row.finish_reason is None
        batch.sample()
        if i + 1 < len(tokens):
            assert batch.run() == []
    batch.remove(batch.rows)
    assert row.tokens == list(tokens)
    return row


@pytest.mark.parametrize(
    ("tokens", "finish_reason", "stop_tokens"),
    [
        ([5], None, 0),
        ([6, 5], None, 0),
        ([EOS_ID], "stop", 1),
        ([4, 5, 6], "stop", 2),  # with the last token that is allowed
        ([5, 5, 6], "stop", 2),
        ([4, 7], "stop", 1),
        ([4, EOS_ID], "stop", 1),
        ([4, 4, 4], "length", 0),
    ],
)
def test_a_text_ends_with_eos_a_stop_sequence_or_its_length(
    tokens: list[int], finish_reason: str | None, stop_tokens: int
) -> None:
    row = written(tokens, max_tokens=3)
    assert (row.finish_reason, row.stop_tokens) == (finish_reason, stop_tokens)


def test_a_long_text_is_written_block_by_block_as_token_by_token() -> None:
    """Over the ends of two blocks of noise, beside rows that come and go."""
    session = FakeSession(vocab_size=40)
    session._table[:, EOS_ID] = -60.0
    read = continued(session, [5])
    assert read.continuation is not None
    long = [writer(choice=i, max_tokens=600 + 100 * i) for i in range(2)]
    batch = WriteBatch(session, 1)  # it grows
    for row in long:
        batch.add(row, read.continuation)
    others = 0
    while batch.rows:
        batch.sample()
        if others < 60:
            batch.add(writer(choice=100 + others, max_tokens=1 + others % 7), read.continuation)
            others += 1
        if batch.rows:
            batch.run()
    alone = [writer(choice=i, max_tokens=600 + 100 * i) for i in range(2)]
    expected = answer_alone(TextWork(counted([5], goes_on=True), alone), session)
    assert answer(TextWork(read, long)).choices == expected.choices


def stepping(choice: int) -> WriteRow:
    """A row of any kind: what its prompt holds counts as nothing that it wrote."""
    top = choice if choice % 2 else None
    stop = ((5, 6), (9,)) if choice % 3 else ()
    return writer(choice=choice, max_tokens=9, how=HOWS[-choice], stop=stop, top=top)


@several
@given(
    prompts=st.lists(st.tuples(texts, st.integers(0, 6)), min_size=1, max_size=6),
    resumed=st.booleans(),
)
def test_a_prompt_that_is_read_in_steps_is_continued_as_one_that_is_read_alone(
    prompts: list[tuple[list[int], int]], resumed: bool
) -> None:
    session = FakeSession()
    batch = WriteBatch(session, 2)
    works: list[TextWork] = []
    for ids, steps_before in prompts:
        for _ in range(steps_before):
            if batch.rows:
                batch.sample()
            if batch.rows:
                batch.run()
        tokens = np.array([BOS_ID, *ids], np.uint16)
        read = ReadRow(tokens, np.full_like(tokens, PAD_ID), wants_continuation=True)
        if resumed:
            start = continued(session, ids[:-1]).continuation
            assert start is not None
            read.resume(len(ids), start.states)
        works.append(TextWork(read, [stepping(len(works))]))
        batch.add_reading(works[-1].write[0], read)
    while batch.rows:
        batch.sample()
        if batch.rows:
            assert batch.run() == []
    for (ids, _), work in zip(prompts, works, strict=True):
        (row,) = work.write
        alone = TextWork(counted(ids, goes_on=True), [stepping(row.choice)])
        assert answer(work).choices == answer_alone(alone, session).choices
        assert len(row.details) == (len(row.tokens) if row.detail_top is not None else 0)
        after = continued(session, ids).continuation
        assert after is not None
        assert work.read.continuation is not None
        assert work.read.continuation.logprobs.tobytes() == after.logprobs.tobytes()
        for state, wanted in zip(work.read.continuation.states, after.states, strict=True):
            assert state.tobytes() == wanted.tobytes()


def test_penalties_follow_a_row_to_another_place() -> None:
    """A strong frequency penalty: no token comes twice while another is left."""
    session = FakeSession()
    read = continued(session, [5])
    assert read.continuation is not None
    how = SamplingParams(frequency_penalty=1000.0, logit_bias=((EOS_ID, -1000.0),))
    batch = WriteBatch(session, 2)
    for i in range(5):
        batch.add(writer(choice=i, max_tokens=1 + i), read.continuation)
    penalized = WriteRow(params=how, seed=3, choice=9, max_tokens=8)
    batch.add(penalized, read.continuation)
    write_to_the_end(batch)
    allowed = session.vocab_size - 4  # without pad, bos, unk, and eos by its bias
    assert len(set(penalized.tokens)) == len(penalized.tokens) == allowed


def test_a_row_that_is_removed_keeps_what_it_has() -> None:
    session = FakeSession()
    session._table[:, EOS_ID] = -60.0
    read = continued(session, [5])
    assert read.continuation is not None
    rows = [writer(choice=i, max_tokens=50) for i in range(3)]
    batch = WriteBatch(session, 4)
    for row in rows:
        batch.add(row, read.continuation)
    for _ in range(7):
        batch.sample()
        batch.run()
    batch.remove([rows[0]])
    assert (len(rows[0].tokens), rows[0].finish_reason) == (7, None)
    write_to_the_end(batch)
    expected = answer_alone(
        TextWork(counted([5]), [writer(choice=i, max_tokens=50) for i in range(3)]), session
    )
    assert tuple(rows[0].tokens) == expected.choices[0][0][:7]
    assert answer(TextWork(read, rows[1:])).choices == expected.choices[1:]


@pytest.mark.parametrize("joins_at", [249, 250, 256, 260])
def test_a_prompt_is_read_while_the_block_of_another_row_ends(joins_at: int) -> None:
    session = FakeSession(vocab_size=40)
    session._table[:, EOS_ID] = -60.0
    first = continued(session, [5])
    assert first.continuation is not None
    batch = WriteBatch(session, 4)
    works = [TextWork(first, [writer(max_tokens=300)])]
    batch.add(works[0].write[0], first.continuation)
    for _ in range(joins_at):
        batch.sample()
        batch.run()
    tokens = np.array([BOS_ID, *[6] * 9], np.uint16)
    read = ReadRow(tokens, np.full_like(tokens, PAD_ID), wants_continuation=True)
    works.append(TextWork(read, [writer(choice=1, max_tokens=280)]))
    batch.add_reading(works[1].write[0], read)
    write_to_the_end(batch)
    for work, ids, row in (
        (works[0], [5], writer(max_tokens=300)),
        (works[1], [6] * 9, writer(choice=1, max_tokens=280)),
    ):
        alone = TextWork(counted(ids, goes_on=True), [row])
        assert answer(work).choices == answer_alone(alone, session).choices


ENDS = [1, 255, 256, 257, 511, 512, 513]


def test_texts_that_end_beside_the_end_of_a_block_are_whole() -> None:
    """Of noise and tokens, 256 positions each; with penalties, details and stop strings."""
    session = FakeSession(vocab_size=30)
    session._table[:, EOS_ID] = -60.0
    read = continued(session, [5])
    assert read.continuation is not None
    penalized = SamplingParams(frequency_penalty=0.5, presence_penalty=-0.2)
    never = ((7, 7, 7, 8, 8, 8),)

    def rows() -> list[WriteRow]:
        return [
            writer(choice=10 * n + i, max_tokens=n, how=how, stop=stop, top=1)
            for n in ENDS
            for i, (how, stop) in enumerate([(SamplingParams(), ()), (penalized, never)])
        ]

    batch = WriteBatch(session, 2)
    together = rows()
    for row in together:
        batch.add(row, read.continuation)
    write_to_the_end(batch)
    assert [len(row.tokens) for row in together] == [n for n in ENDS for _ in range(2)]
    assert [len(row.details) for row in together] == [len(row.tokens) for row in together]
    expected = answer_alone(TextWork(counted([5]), rows()), session)
    assert answer(TextWork(read, together)).choices == expected.choices


@pytest.mark.parametrize("before", [253, 254, 255, 256, 510, 511])
@pytest.mark.parametrize(("end", "stop_tokens"), [([5, 6], 2), ([EOS_ID], 1)])
def test_a_text_is_stopped_where_a_block_ends_as_anywhere(
    before: int, end: list[int], stop_tokens: int
) -> None:
    row = written([*[4] * before, *end], max_tokens=600)
    assert (row.finish_reason, row.stop_tokens) == ("stop", stop_tokens)


@pytest.mark.parametrize("steps", [255, 256, 257])
def test_a_row_that_is_removed_where_a_block_ends_keeps_what_it_has(steps: int) -> None:
    session = FakeSession()
    session._table[:, EOS_ID] = -60.0
    read = continued(session, [5])
    assert read.continuation is not None
    row = writer(max_tokens=600)
    batch = WriteBatch(session, 1)
    batch.add(row, read.continuation)
    for _ in range(steps):
        batch.sample()
        batch.run()
    batch.remove([row])
    (expected,) = answer_alone(TextWork(counted([5]), [writer(max_tokens=steps)]), session).choices
    assert tuple(row.tokens) == expected[0]
