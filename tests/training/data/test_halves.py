"""A split that is fitted on and reported on is cut in two."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from service.bundle.text import BOS_ID, EOS_ID
from tests.training.helpers import documents, split_of, vocabulary
from training.data.corpus import LEAST_FITTED, LEAST_HALVED, Corpus, Split

texts = st.lists(st.lists(st.integers(4, 9), max_size=60), min_size=1, max_size=60)


def characters(split: Split) -> list[int]:
    return [int(x) for x in split.ids if x not in {BOS_ID, EOS_ID}]


def check_documents(split: Split) -> None:
    assert split.starts[0] == 0
    assert split.starts[-1] == len(split.ids)
    for ids in documents(split):
        assert ids[0] == BOS_ID
        assert ids[-1] == EOS_ID
        assert not {BOS_ID, EOS_ID} & {*ids[1:-1]}


@given(texts)
def test_halves_are_documents_and_hold_every_character_once(given_texts: list[list[int]]) -> None:
    split = split_of(given_texts)
    first, second = split.halves()
    assert characters(first) + characters(second) == characters(split)
    for half in (first, second):
        check_documents(half)


@given(texts, st.integers(2, 500))
def test_the_first_tokens_are_documents(given_texts: list[list[int]], tokens: int) -> None:
    split = split_of(given_texts)
    first = split.first(tokens)
    check_documents(first)
    assert characters(first) == characters(split)[: first.chars]
    assert len(first.ids) <= max(tokens + 1, 3) or split.documents >= 30


@given(texts, texts)
def test_joined_splits_hold_the_documents_of_both(
    first: list[list[int]], second: list[list[int]]
) -> None:
    one, other = split_of(first), split_of(second)
    assert documents(one.joined(other)) == documents(one) + documents(other)


def corpus_of(valid: Sequence[Sequence[int]], test: Sequence[Sequence[int]]) -> Corpus:
    empty = Split(np.empty(0, np.uint16), np.zeros(1, np.int64))
    one = split_of([[5] * 10])
    return Corpus(vocabulary(9), "", one, split_of(valid), split_of(test) if test else empty)


def test_with_a_test_split_the_validation_split_is_fitted_on() -> None:
    corpus = corpus_of([[5] * LEAST_FITTED], [[6] * 10])
    assert corpus.fitting is corpus.valid
    assert corpus.held_out is corpus.test


def test_without_one_half_of_the_validation_split_is_fitted_on_and_the_other_reported() -> None:
    corpus = corpus_of([[5] * LEAST_FITTED + [6] * LEAST_FITTED], [])
    assert corpus.held_out_name == "valid"
    assert corpus.fitting is not None
    assert {*characters(corpus.fitting)} == {5}
    assert {*characters(corpus.held_out)} <= {5, 6}
    assert corpus.fitting.chars + corpus.held_out.chars == corpus.valid.chars


def test_little_text_is_only_reported_on() -> None:
    corpus = corpus_of([[5] * (LEAST_HALVED - 2)], [])
    assert corpus.fitting is None
    assert corpus.held_out is corpus.valid
    assert corpus_of([[5] * (LEAST_FITTED - 2)], [[6]]).fitting is None
