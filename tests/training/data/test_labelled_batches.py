"""Batches of labelled texts: their layout, and a walk that misses nothing."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bundle.labeler import Labels
from service.bundle.text import BOS_ID, EOS_ID, PAD_ID
from training.data.labelled import LabelledSplit
from training.data.labelled_batches import (
    NO_LABEL,
    LabelledBatches,
    by_length,
    labelled_batch,
    pad_texts,
)

NAMES = ["a", "b", "c"]
ONE = Labels(names=NAMES, scope="text", several=False)
SEVERAL = Labels(names=NAMES, scope="text", several=True)
OF_CHARACTERS = Labels(names=NAMES, scope="character", several=False)


def split_of(*texts: tuple[list[int], list[int]]) -> LabelledSplit:
    """Texts of these tokens and labels."""
    tokens = [np.array(ids, np.uint16) for ids, _ in texts]
    labels = [np.array(ids, np.int32) for _, ids in texts]
    return LabelledSplit("train", [""] * len(texts), tokens, labels)


def test_a_text_has_one_label() -> None:
    batch = labelled_batch(split_of(([7, 8], [2]), ([9], [0])), [1, 0], ONE)
    assert batch.tokens.tolist() == [[BOS_ID, 9, EOS_ID, PAD_ID], [BOS_ID, 7, 8, EOS_ID]]
    assert batch.lengths.tolist() == [3, 4]
    assert batch.labels.tolist() == [0, 2]
    assert batch.counted == 2


def test_a_text_that_is_read_forward_has_no_end() -> None:
    batch = labelled_batch(split_of(([7, 8], [2]), ([9], [0])), [0, 1], ONE, forward=True)
    assert batch.tokens.tolist() == [[BOS_ID, 7, 8], [BOS_ID, 9, PAD_ID]]
    assert batch.lengths.tolist() == [3, 2]


def test_a_text_has_several_labels_or_none() -> None:
    batch = labelled_batch(split_of(([7], [0, 2]), ([9], [])), [0, 1], SEVERAL)
    assert batch.labels.tolist() == [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    assert batch.labels.dtype == np.float32
    assert batch.counted == 6


def test_a_character_has_a_label_and_the_other_places_have_none() -> None:
    split = split_of(([7, 8], [2, 1]), ([9], [0]), ([], []))
    batch = labelled_batch(split, [0, 1, 2], OF_CHARACTERS)
    none = NO_LABEL
    assert batch.labels.tolist() == [[none, 2, 1, none], [none, 0, none, none], [none] * 4]
    assert batch.counted == 3


ids = st.lists(st.integers(4, 500), max_size=6)
splits = st.lists(ids, min_size=1, max_size=40).map(
    lambda texts: split_of(*((tokens, [i % 3 for i in tokens]) for tokens in texts))
)


@given(splits, st.booleans())
def test_texts_are_padded_to_the_longest_and_no_further(
    split: LabelledSplit, forward: bool
) -> None:
    tokens, lengths = pad_texts(split.tokens, forward=forward)
    assert tokens.shape[1] == lengths.max()
    for row, length, text in zip(tokens, lengths, split.tokens, strict=True):
        end = [] if forward else [EOS_ID]
        assert row[:length].tolist() == [BOS_ID, *text.tolist(), *end]
        assert (row[length:] == PAD_ID).all()


@given(splits, st.integers(1, 9), st.integers(0, 20))
def test_every_text_is_read_once_an_epoch_and_the_walk_can_be_taken_up(
    split: LabelledSplit, batch_size: int, steps: int
) -> None:
    walk = LabelledBatches(split, OF_CHARACTERS, batch_size, seed=1)
    found: Counter[tuple[int, ...]] = Counter()
    while found.total() < len(split):
        batch = walk.next()
        rows = zip(batch.tokens, batch.lengths, batch.labels, strict=True)
        for row, length, labels in rows:
            found[tuple(row[1 : length - 1].tolist())] += 1
            assert (labels[1 : length - 1] == row[1 : length - 1] % 3).all()
    assert found == Counter(tuple(text.tolist()) for text in split.tokens)
    for _ in range(steps):
        walk.next()
    other = LabelledBatches(split, OF_CHARACTERS, batch_size, seed=1)
    other.restore(walk.state())
    for _ in range(9):
        assert other.next().tokens.tolist() == walk.next().tokens.tolist()


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_evaluation_reads_every_text_once_shortest_first(batch_size: int) -> None:
    split = split_of(*(([5] * (7 * i % 11), [0]) for i in range(20)))
    batches = by_length(split, batch_size)
    order = [i for batch in batches for i in batch]
    assert sorted(order) == list(range(20))
    lengths = [len(split.tokens[i]) for i in order]
    assert lengths == sorted(lengths)
    assert max(map(len, batches)) <= batch_size
