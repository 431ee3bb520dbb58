"""N-gram models of random texts, some of them pruned."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from service.bundle.text import BOS_ID, EOS_ID, UNK_ID
from training.evaluation import ngram


def fitted(corpus: Sequence[Sequence[int]], vocab_size: int, order: int) -> ngram.NGramModel:
    """The model of documents of letters, without their bos and eos."""
    documents = [[BOS_ID, *letters, EOS_ID] for letters in corpus]
    ids = np.array([x for document in documents for x in document], np.uint16)
    starts = np.cumsum([0, *map(len, documents)])
    return ngram.fit(ids, starts, vocab_size, order)[-1]


def pruned(model: ngram.NGramModel, share: float, seed: int) -> ngram.NGramModel:
    """The model after a random share of its n-grams has given its mass to the lower orders."""
    rng = np.random.default_rng(seed)
    levels = []
    for level in model.levels:
        histories = level.keys[:-1] // len(model.unigram)
        gone = rng.random(len(histories)) < share
        weights = []
        for old in (level.highest, level.lower):
            given = np.bincount(histories, old.mass[:-1] * gone, minlength=len(old.gamma))
            mass = np.append(np.where(gone, 0.0, old.mass[:-1]), 0.0)
            weights.append(replace(old, mass=mass, gamma=old.gamma + given))
        levels.append(replace(level, highest=weights[0], lower=weights[1]))
    return replace(model, levels=tuple(levels))


@st.composite
def models(draw: st.DrawFn) -> ngram.NGramModel:
    """Models of any order over a few documents of a small or a wide vocabulary."""
    vocab_size = draw(st.sampled_from([5, 8, 9, 37, 700]))
    letters = st.integers(UNK_ID, vocab_size - 1)
    corpus = draw(st.lists(st.lists(letters, max_size=40), min_size=1, max_size=5))
    model = fitted(corpus, vocab_size, draw(st.integers(2, 10)))
    share = draw(st.sampled_from([0.0, 0.0, 0.3, 0.9, 1.0]))
    return pruned(model, share, draw(st.integers(0, 9))) if share else model


def text_model(order: int, vocab_size: int = 37, length: int = 3000) -> ngram.NGramModel:
    """A model of one skewed text, in which each token has a few likely followers."""
    rng = np.random.default_rng(0)
    letters = vocab_size - UNK_ID
    followers = rng.dirichlet(np.full(letters, 0.1), size=letters).cumsum(axis=1)
    text = [0]
    for uniform in rng.random(length):
        text.append(min(int(np.searchsorted(followers[text[-1]], uniform)), letters - 1))
    return fitted([[UNK_ID + letter for letter in text]], vocab_size, order)
