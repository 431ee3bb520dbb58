"""The trie's rows: in place, apart from each other, and dense."""

import numpy as np
import pytest
from hypothesis import given, settings

from tests.training.ngram_models import fitted, models, pruned, text_model
from training.evaluation.ngram import NGramModel
from training.evaluation.ngram_network import network
from training.networks import ngram_trie
from training.networks.ngram_trie import NOWHERE, RUN, Trie

quick = settings(deadline=None, max_examples=40)


def tokens_of(trie: Trie, node: int) -> np.ndarray:
    """Tokens that have a child under a node."""
    slots = trie.base[node] * RUN + trie.columns
    return np.flatnonzero(trie.check[slots] == trie.color[node])


@quick
@given(models())
def test_every_slot_in_use_belongs_to_one_row(model: NGramModel) -> None:
    trie = network(model).trie
    owned = np.zeros(len(trie.check), np.int64)
    for node in range(1, trie.root + 1):
        owned[trie.base[node] * RUN + trie.columns[tokens_of(trie, node)]] += 1
    assert np.array_equal(owned, trie.check > 0)
    assert owned.sum() == trie.grams
    assert len(tokens_of(trie, NOWHERE)) == 0


@quick
@given(models())
def test_every_node_but_the_root_is_the_child_of_one_slot(model: NGramModel) -> None:
    trie = network(model).trie
    children = trie.child[trie.child > 0]
    assert np.array_equal(np.sort(children), np.arange(1, trie.root))
    # A row never reaches beyond the array.
    assert (trie.base + trie.row_runs).max() * RUN <= len(trie.check)


def test_columns_are_a_permutation_that_fills_runs_evenly() -> None:
    trie = network(text_model(5)).trie
    assert len(np.unique(trie.columns)) == len(trie.columns)
    assert trie.columns.max() < trie.row_runs * RUN
    assert trie.grams / len(trie.check) > 0.9


def test_ngrams_without_mass_stay_only_as_histories() -> None:
    model = text_model(5)
    whole, part, none = (network(pruned(model, x, 0)).trie for x in (0.0, 0.5, 1.0))
    assert whole.grams > part.grams > none.grams
    assert none.root == 1  # no history is left, only the tokens by themselves


def test_a_trie_too_large_for_float32_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngram_trie, "_MAX_NODES", 50)
    with pytest.raises(ValueError, match="fewer than 50 are allowed"):
        network(text_model(5))


def test_rows_that_hardly_fit_together_get_more_room() -> None:
    text = np.random.default_rng(0).integers(4, 14, 20_000).tolist()
    trie = network(fitted([text], 14, 4)).trie
    assert trie.grams / trie.root > 8  # of 10 letters after a history
    assert trie.grams / len(trie.check) > 0.4
