"""The texts of the table: whole documents, or stretches as people paste them."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from service.bundle.percentiles import MAX_RANGES, MAX_RANKS
from service.bundle.text import BOS_ID, EOS_ID, Vocabulary
from tests.training.helpers import FABLE
from training.data.corpus import Split
from training.evaluation.percentiles import (
    LEAST_TEXTS,
    Floats,
    Texts,
    documents_of,
    listed_ranks,
    merged,
    percentiles,
    stretches_of,
)

VOCAB = Vocabulary.of_characters(FABLE)


def split_of(documents: list[str]) -> Split:
    ids = [[BOS_ID, *VOCAB.encode(x).tolist(), EOS_ID] for x in documents]
    starts = np.cumsum([0, *map(len, ids)])
    return Split(np.array(list(itertools.chain(*ids)), np.uint16), starts)


def text_of(split: Split, texts: Texts, i: int) -> str:
    return VOCAB.decode(split.ids[texts.starts[i] : texts.ends[i]].tolist())


def blanks_of(split: Split) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.array([x.isspace() for x in VOCAB.tokens])[split.ids] | (split.ids < 3)


def by_length(_: Split, texts: Texts) -> tuple[Floats, Floats]:
    """A stand-in for a model: the longer, the less surprising a character."""
    nats = np.sqrt(texts.chars.astype(np.float64))
    return nats, nats + 1.0


documents = st.lists(st.text("ab \n", min_size=1, max_size=200), min_size=1, max_size=6)


@given(documents, st.integers(1, 20), st.integers(0, 20))
def test_stretches_are_apart_and_of_the_length_that_was_asked_for(
    found: list[str], least: int, more: int
) -> None:
    split = split_of(found)
    texts = stretches_of(split, blanks_of(split), least, least + more)
    assert np.all((least <= texts.chars) & (texts.chars <= least + more))
    assert np.all(texts.ends[:-1] <= texts.starts[1:])
    for start, end in zip(texts.starts, texts.ends, strict=True):
        assert np.all(split.ids[start:end] > EOS_ID)


def test_stretches_are_whole_words() -> None:
    split = split_of([FABLE])
    texts = stretches_of(split, blanks_of(split), 23, 31)
    assert len(texts) > 25
    assert text_of(split, texts, 0) == "a fox one day spied a beautiful"[: texts.chars[0]]
    for start, end in zip(texts.starts, texts.ends, strict=True):
        before, first, last, after = split.ids[[start - 1, start, end - 1, end]].tolist()
        assert before == BOS_ID or VOCAB.tokens[before].isspace()
        assert after == EOS_ID or VOCAB.tokens[after].isspace()
        assert not (VOCAB.tokens[first] + VOCAB.tokens[last]).isspace()
    assert len(set(texts.chars.tolist())) > 5


def test_text_without_blanks_is_cut_anywhere() -> None:
    split = split_of(["a" * 1000])
    texts = stretches_of(split, blanks_of(split), 10, 10)
    assert len(texts) == 100


def test_of_very_much_text_stretches_are_taken_from_all_of_it() -> None:
    split = split_of(["ab cd efgh " * 60_000])
    texts = stretches_of(split, blanks_of(split), 64, 90)
    assert texts.chars.sum() < 110_000
    assert texts.ends[-1] > 0.98 * len(split.ids)


def test_documents_are_texts_but_for_empty_ones() -> None:
    split = split_of(["a fox", "", "tree"])
    texts = documents_of(split)
    assert [text_of(split, texts, i) for i in range(len(texts))] == ["a fox", "tree"]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=3000))
def test_ranges_of_documents_hold_every_text_and_enough_of_them(lengths: list[int]) -> None:
    rising = sorted(lengths)
    found = merged(rising)
    assert [x for first, last in found for x in rising[first:last]] == rising
    assert len(found) <= MAX_RANGES
    for (_, last), (first, _) in itertools.pairwise(found):
        assert last == first
        assert rising[last - 1] < rising[first]
    assert all(last - first >= min(50, len(rising)) for first, last in found)


def test_the_ranges_of_a_table_leave_no_length_out() -> None:
    split = split_of(["a" * (1 + (7 * i) % 40) for i in range(400)])
    table = percentiles(split, "valid", VOCAB, "documents", by_length)
    assert table is not None
    assert len(table.lengths) > 2
    assert sum(x.texts for x in table.lengths) == 400
    assert (table.lengths[0].least_chars, table.lengths[-1].most_chars) == (1, 40)
    for a, b in itertools.pairwise(table.lengths):
        assert a.most_chars + 1 == b.least_chars
        assert a.bits_per_char[0] >= b.bits_per_char[-1]


def test_too_little_text_has_no_table() -> None:
    few = split_of(["a fox"] * (LEAST_TEXTS - 1))
    assert percentiles(few, "test", VOCAB, "documents", by_length) is None
    assert percentiles(split_of(["a fox"]), "test", VOCAB, "stretches", by_length) is None


def test_running_text_has_a_range_for_each_length_with_enough_of_it() -> None:
    table = percentiles(split_of([3 * FABLE]), "test", VOCAB, "stretches", by_length)
    assert table is not None
    bounds = [(x.least_chars, x.most_chars) for x in table.lengths]
    assert bounds[:3] == [(8, 10), (11, 15), (16, 22)]
    assert all(x.texts >= LEAST_TEXTS for x in table.lengths)
    assert bounds[-1][1] < 128


@given(st.integers(1, 10_000))
def test_the_listed_ranks_are_few_and_dense_near_the_upper_end(texts: int) -> None:
    ranks = listed_ranks(texts)
    assert (ranks[0], ranks[-1]) == (1, texts)
    assert all(a < b for a, b in itertools.pairwise(ranks))
    assert len(ranks) <= min(texts, MAX_RANKS)
    for rate in (0.005, 0.01, 0.05):
        distance = int(rate * texts)
        if distance:
            gap = min(abs(texts - distance - rank) for rank in ranks)
            assert gap <= 1 + 0.1 * distance
