"""An n-gram model in the form that is exported."""

import numpy as np

from training.evaluation.ngram import NGramModel
from training.networks import ngram_trie
from training.networks.ngram import NGram


def network(model: NGramModel) -> NGram:
    """The model as a module with explicit states. Raises ValueError for order 1."""
    if not model.levels:
        raise ValueError("an n-gram model of order 1 has no history to carry: order 2 is the least")
    vocab_size = len(model.unigram)
    levels = []
    for level, weights in zip(model.levels, model.weights, strict=True):
        histories, tokens = np.divmod(level.keys[:-1], vocab_size)
        levels.append(ngram_trie.Level(histories, tokens, weights.mass[:-1], weights.gamma))
    return NGram(ngram_trie.build(model.continuation, levels))
