"""Texts grouped as rows: each is there once, framed as the model reads it."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle.padding import padded_length
from service.bundle.text import BOS_ID, EOS_ID, PAD_ID
from service.scheduling.labeler import MAX_RUN_SUMS, READ_CHUNK
from service.tasks.label_works import grouped


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 150), max_size=60),
    forward=st.booleans(),
    goes_on=st.booleans(),
)
def test_every_text_is_in_one_piece_of_work(
    lengths: list[int], forward: bool, goes_on: bool
) -> None:
    texts = [np.arange(10, 10 + length).astype(np.uint16) for length in lengths]
    goes_on = goes_on and forward
    start = (np.ones((1, 3), np.float32),) if goes_on else None
    groups = grouped(texts, reads_forward=forward, start=start)
    seen = []
    for group in groups:
        work = group.work
        assert len(group.texts) == work.rows == len(work.tokens)
        assert {padded_length(int(x)) for x in work.lengths} == {work.tokens.shape[1]}
        assert work.queued_tokens == work.lengths.sum()
        if forward and work.remaining > READ_CHUNK:
            assert work.rows == 1
        if goes_on:
            assert work.start is not None
            assert work.start[0].tolist() == [[1.0] * 3] * work.rows
        for i, row, length in zip(group.texts, work.tokens, work.lengths, strict=True):
            bos, eos = [BOS_ID] * (not goes_on), [EOS_ID] * (not forward)
            assert row[:length].tolist() == [*bos, *texts[i].tolist(), *eos]
            assert (row[length:] == PAD_ID).all()
            seen.append(int(i))
    by_places: dict[int, list[int]] = {}
    for group in groups:
        by_places.setdefault(group.work.tokens.shape[1], []).extend(group.work.lengths.tolist())
    assert all(found == sorted(found) for found in by_places.values())
    empty = [i for i, x in enumerate(lengths) if goes_on and not x]
    assert sorted([*seen, *empty]) == list(range(len(texts)))


def test_texts_whose_labels_take_long_are_few_at_a_time() -> None:
    texts = [np.arange(10, 20, dtype=np.uint16)] * 20  # 16 places each
    place_sums = MAX_RUN_SUMS // (16 * 3)
    groups = grouped(texts, reads_forward=False, place_sums=place_sums)
    assert [group.work.rows for group in groups] == [3] * 6 + [2]
    assert {group.work.sums // group.work.rows for group in groups} == {16 * place_sums}
    (whole,) = grouped(texts[:1], reads_forward=False, place_sums=MAX_RUN_SUMS)
    assert whole.work.sums > MAX_RUN_SUMS
