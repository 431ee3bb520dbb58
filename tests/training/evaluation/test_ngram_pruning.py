"""Pruning an n-gram model: what is kept sums to one, and is worth more than what is not."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle.text import BOS_ID, EOS_ID, PAD_ID
from tests.training.evaluation.test_ngram import (
    MAX_ORDER,
    VOCAB_SIZE,
    corpora,
    documents,
    flat,
    markov_corpus,
)
from training.evaluation import ngram, ngram_pruning
from training.evaluation.ngram import NGramModel
from training.evaluation.ngram_pruning import prune

quick = settings(deadline=None, max_examples=60)


def fitted(corpus: list[list[int]], order: int, vocab_size: int = VOCAB_SIZE) -> NGramModel:
    return ngram.fit(*flat(corpus), vocab_size, order)[-1]


def grams(model: NGramModel, size: int) -> list[tuple[int, ...]]:
    """The model's n-grams of `size` tokens, in its order."""
    vocab_size = len(model.unigram)
    found: list[tuple[int, ...]] = [(token,) for token in range(vocab_size)]
    for level in model.levels[: size - 1]:
        history, token = np.divmod(level.keys[:-1], vocab_size)
        found = [(*found[h], int(w)) for h, w in zip(history, token, strict=True)]
    return found


def all_grams(model: NGramModel) -> set[tuple[int, ...]]:
    return {gram for size in range(2, model.order + 1) for gram in grams(model, size)}


def nats(model: NGramModel, corpus: list[list[int]]) -> float:
    return -sum(float(model.logprobs(np.array(document)).sum()) for document in corpus)


@quick
@given(corpora, documents, st.integers(2, MAX_ORDER), st.floats(0, 1), st.floats(0, 0.2))
def test_a_pruned_model_sums_to_one_after_every_history(
    corpus: list[list[int]], document: list[int], order: int, share: float, threshold: float
) -> None:
    model = fitted(corpus, order)
    pruned = prune(model, threshold=threshold, at_most=int(share * model.ngrams))
    for text in (document, corpus[0], corpus[0][1:]):
        probs = pruned.distributions(np.array(text))
        np.testing.assert_allclose(probs.sum(axis=1), 1.0, rtol=0, atol=1e-12)
        assert (np.delete(probs, [PAD_ID, BOS_ID], axis=1) > 0).all()
        assert (probs[:, [PAD_ID, BOS_ID]] == 0).all()
        own = probs[np.arange(1, len(text)), text[1:]]
        np.testing.assert_allclose(pruned.logprobs(np.array(text)), np.log(own), atol=1e-12)


@quick
@given(corpora, st.integers(2, MAX_ORDER))
def test_no_threshold_and_no_bound_change_nothing(corpus: list[list[int]], order: int) -> None:
    model = fitted(corpus, order)
    assert prune(model) is model
    assert prune(model, at_most=model.ngrams) is model


@quick
@given(corpora, st.integers(2, MAX_ORDER), st.floats(0, 1))
def test_the_bound_holds_exactly(corpus: list[list[int]], order: int, share: float) -> None:
    model = fitted(corpus, order)
    at_most = int(share * model.ngrams)
    assert prune(model, at_most=at_most).ngrams == at_most


@quick
@given(corpora, st.integers(2, MAX_ORDER), st.floats(0, 1), st.floats(0, 0.2))
def test_what_a_kept_ngram_begins_with_is_kept(
    corpus: list[list[int]], order: int, share: float, threshold: float
) -> None:
    model = fitted(corpus, order)
    kept = all_grams(prune(model, threshold=threshold, at_most=int(share * model.ngrams)))
    assert kept <= all_grams(model)
    assert all(len(gram) == 2 or gram[:-1] in kept for gram in kept)


@quick
@given(corpora, st.integers(2, MAX_ORDER), st.floats(1e-9, 0.2), st.floats(1e-9, 0.2))
def test_a_higher_threshold_keeps_less_of_the_same(
    corpus: list[list[int]], order: int, one: float, other: float
) -> None:
    model = fitted(corpus, order)
    low, high = (all_grams(prune(model, threshold=x)) for x in sorted((one, other)))
    assert high <= low


@pytest.mark.parametrize("options", [{"threshold": 1e9}, {"at_most": 0}])
def test_without_any_ngram_the_unigrams_are_left(options: dict[str, Any]) -> None:
    model = fitted(markov_corpus(0, 20, 30), 4)
    pruned = prune(model, **options)
    text = np.array([BOS_ID, 5, 4, 6, EOS_ID])
    expected = np.tile(model.continuation, (len(text), 1))
    np.testing.assert_allclose(pruned.distributions(text), expected, rtol=1e-12)


def test_the_fewer_ngrams_the_less_likely_is_the_training_text() -> None:
    corpus = markov_corpus(1, 40, 60)
    model = fitted(corpus, 4)
    sizes = [round(model.ngrams * share) for share in (1.0, 0.8, 0.6, 0.4, 0.2, 0.1, 0.0)]
    found = [nats(prune(model, at_most=size), corpus) for size in sizes]
    assert all(more < less for more, less in pairwise(found))


def test_more_is_lost_without_the_most_valuable() -> None:
    model = fitted(markov_corpus(2, 40, 60), 3)
    held_out = markov_corpus(2, 80, 60)[40:]
    values = np.concatenate(ngram_pruning._values(model))
    bounds = np.cumsum([len(level.keys) - 1 for level in model.levels])[:-1]
    longest = np.arange(len(values)) >= bounds[0]
    found = []
    for order in (values, -values):
        left_out = np.argsort(np.where(longest, order, np.inf))[: longest.sum() // 2]
        kept = np.isin(np.arange(len(values)), left_out, invert=True)
        found.append(nats(ngram_pruning._without(model, np.split(kept, bounds)), held_out))
    assert found[0] < found[1]


def test_a_value_is_the_divergence_that_the_text_sees() -> None:
    corpus = markov_corpus(3, 60, 60)
    _, bigrams, model = ngram.fit(*flat(corpus), VOCAB_SIZE, 3)
    values = ngram_pruning._values(model)[-1]
    pairs = grams(model, 2)
    for index, (first, second, _) in enumerate(grams(model, 3)):
        frequency = model.unigram[EOS_ID if first == BOS_ID else first]  # one of each a document
        frequency *= bigrams.distributions(np.array([first, second]))[1, second]
        kept = [np.ones(len(pairs), np.bool_), np.arange(len(values)) != index]
        without = ngram_pruning._without(model, kept)
        history = np.array([first, second, EOS_ID])
        before, after = (x.distributions(history)[-1, EOS_ID:] for x in (model, without))
        divergence = (before * np.log(before / after)).sum()
        # The other tokens' terms are linearized, which makes them smaller.
        assert values[index] <= frequency * divergence + 1e-15
        assert values[index] == pytest.approx(frequency * divergence, rel=0.5, abs=1e-9)
