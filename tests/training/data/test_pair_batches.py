"""Batches of pairs: their layout, and a walk that misses nothing and can be taken up anywhere."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bundle.text import BOS_ID, EOS_ID, PAD_ID
from tests.training.helpers import pair_split_of
from training.data.pair_batches import PairBatch, PairBatches, pad_sources, pair_batch
from training.data.pairs import PairSplit

ids = st.lists(st.integers(3, 500), max_size=6)
splits = st.lists(st.tuples(ids, ids), min_size=1, max_size=40).map(pair_split_of)


def numbered(count: int) -> PairSplit:
    """Pairs of many lengths, each with a source and a target of its own."""
    return pair_split_of([([i + 4] * (i % 7 + 1), [i + 4] * (i % 5)) for i in range(count)])


def pairs_of(batch: PairBatch) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """What the rows hold between the special tokens."""
    found = []
    for source, length, target in zip(batch.sources, batch.lengths, batch.targets, strict=True):
        end = target.tolist().index(EOS_ID)
        found.append((tuple(source[: length - 1].tolist()), tuple(target[:end].tolist())))
    return found


def epoch(batches: PairBatches, pairs: int) -> list[PairBatch]:
    found: list[PairBatch] = []
    while sum(len(batch.lengths) for batch in found) < pairs:
        found.append(batches.next())
    return found


def as_lists(batch: PairBatch) -> list[Any]:
    parts = (batch.sources, batch.lengths, batch.tokens, batch.targets)
    return [part.tolist() for part in parts]


# --- one batch ----------------------------------------------------------------------------------


def test_a_batch_is_padded_between_its_special_tokens() -> None:
    batch = pair_batch(pair_split_of([([7, 8], [5]), ([9], [4, 6, 3]), ([], [])]), [0, 1, 2])
    assert batch.sources.tolist() == [
        [7, 8, EOS_ID],
        [9, EOS_ID, PAD_ID],
        [EOS_ID, PAD_ID, PAD_ID],
    ]
    assert batch.lengths.tolist() == [3, 2, 1]
    assert batch.tokens.tolist() == [
        [BOS_ID, 5, PAD_ID, PAD_ID],
        [BOS_ID, 4, 6, 3],
        [BOS_ID, PAD_ID, PAD_ID, PAD_ID],
    ]
    assert batch.targets.tolist() == [
        [5, EOS_ID, PAD_ID, PAD_ID],
        [4, 6, 3, EOS_ID],
        [EOS_ID, PAD_ID, PAD_ID, PAD_ID],
    ]
    assert batch.predicted == 7


@given(splits)
def test_a_row_reads_what_the_step_before_should_have_written(split: PairSplit) -> None:
    batch = pair_batch(split, range(len(split)))
    counted = batch.targets != PAD_ID
    assert (batch.tokens[:, 0] == BOS_ID).all()
    assert (batch.tokens[:, 1:] == batch.targets[:, :-1])[counted[:, 1:]].all()
    assert (batch.tokens[~counted] == PAD_ID).all()
    assert batch.predicted == sum(len(target) + 1 for target in split.targets)


@given(splits)
def test_sources_are_padded_to_the_longest_and_no_further(split: PairSplit) -> None:
    padded, lengths = pad_sources(split.sources)
    assert padded.shape[1] == lengths.max() == max(map(len, split.sources)) + 1
    for row, length, source in zip(padded, lengths, split.sources, strict=True):
        assert row[:length].tolist() == [*source.tolist(), EOS_ID]
        assert (row[length:] == PAD_ID).all()


# --- the walk -----------------------------------------------------------------------------------


@given(splits, st.integers(1, 50), st.integers(0, 3))
def test_every_pair_is_read_once_an_epoch(split: PairSplit, batch_size: int, seed: int) -> None:
    batches = PairBatches(split, batch_size, seed=seed)
    wanted = Counter(
        (tuple(source.tolist()), tuple(target.tolist()))
        for source, target in zip(split.sources, split.targets, strict=True)
    )
    for _ in range(3):
        found = epoch(batches, len(split))
        assert Counter(pair for batch in found for pair in pairs_of(batch)) == wanted
        assert max(len(batch.lengths) for batch in found) <= batch_size


def test_all_batches_but_one_a_pool_are_full() -> None:
    sizes = Counter(len(x.lengths) for x in epoch(PairBatches(numbered(450), 4, seed=1), 450))
    assert sizes == {4: 112, 2: 1}  # pools of 200, 200 and 50 pairs


def test_a_batch_larger_than_the_split_is_the_whole_split() -> None:
    batches = PairBatches(numbered(5), 64, seed=1)
    for _ in range(3):
        assert len(batches.next().lengths) == 5


def test_epochs_have_different_orders_and_seeds_too() -> None:
    split = numbered(40)
    batches = PairBatches(split, 4, seed=1)
    orders = [[as_lists(x) for x in epoch(batches, 40)] for _ in range(2)]
    orders.append([as_lists(x) for x in epoch(PairBatches(split, 4, seed=2), 40)])
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert orders[0] == [as_lists(x) for x in epoch(PairBatches(split, 4, seed=1), 40)]


def test_pairs_of_a_batch_are_of_like_lengths() -> None:
    rng = np.random.default_rng(0)
    split = pair_split_of([([5] * rng.integers(1, 60), [6]) for _ in range(640)])
    found = epoch(PairBatches(split, 16, seed=1), 640)
    filled = sum(int(x.lengths.sum()) for x in found) / sum(x.sources.size for x in found)
    assert filled > 0.95


def test_short_pairs_do_not_come_before_long_ones() -> None:
    split = numbered(200)
    longest = [int(x.lengths.max()) for x in epoch(PairBatches(split, 8, seed=1), 200)]
    assert longest != sorted(longest)


@given(splits, st.integers(1, 9), st.integers(0, 30))
def test_a_walk_is_taken_up_where_its_state_was_taken(
    split: PairSplit, batch_size: int, steps: int
) -> None:
    whole = PairBatches(split, batch_size, seed=3)
    for _ in range(steps):
        whole.next()
    second = PairBatches(split, batch_size, seed=3)
    second.next()  # whatever it did before is forgotten
    second.restore(whole.state())
    assert second.state() == whole.state()
    for _ in range(12):
        assert as_lists(second.next()) == as_lists(whole.next())


@pytest.mark.parametrize("steps", [9, 10, 11])
def test_a_state_at_an_epochs_end_belongs_to_it(steps: int) -> None:
    batches = PairBatches(numbered(40), 4, seed=1)
    for _ in range(steps):
        batches.next()
    expected = {9: (0, 9), 10: (0, 10), 11: (1, 1)}[steps]
    assert tuple(batches.state().values()) == expected
