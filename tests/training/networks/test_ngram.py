"""The n-gram as a module: the model's own distributions, at every state that a text can reach."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle.text import BOS_ID
from tests.training.ngram_models import fitted, models, text_model
from training.evaluation.ngram import NGramModel
from training.evaluation.ngram_network import network
from training.networks.ngram import MIN_LOGPROB, NGram

quick = settings(deadline=None, max_examples=40)


def read(module: NGram, ids: np.ndarray) -> np.ndarray:
    """[T] ids of a text from its start to [T, V] probabilities after each."""
    with torch.no_grad():
        probs, _ = module.probabilities(torch.from_numpy(ids[None]), module.initial_states(1))
    return probs[0].numpy()


def wanted(model: NGramModel, ids: np.ndarray) -> np.ndarray:
    """The same by the model itself, whose place t predicts token t."""
    return model.distributions(np.append(ids, 0))[1:]


@quick
@given(models(), st.integers(0, 99))
def test_the_module_has_the_models_distributions(model: NGramModel, seed: int) -> None:
    rng = np.random.default_rng(seed)
    module = network(model)
    # Random ids, and n-grams of the text itself: most random ones are unknown after two tokens.
    ids = rng.integers(0, module.vocab_size, 30)
    paths = np.append(BOS_ID, np.concatenate([_some_path(model, rng) for _ in range(5)]))
    for text in (ids, paths):
        np.testing.assert_allclose(read(module, text), wanted(model, text), rtol=1e-6, atol=0)
        precise = read(network(model).double(), text)
        np.testing.assert_allclose(precise, wanted(model, text), rtol=1e-12, atol=0)


def _some_path(model: NGramModel, rng: np.random.Generator) -> np.ndarray:
    """The tokens of one of the longest n-grams that there are."""
    vocab_size = len(model.unigram)
    known = [level.keys[:-1] for level in model.levels if len(level.keys) > 1]
    key, path = int(rng.choice(known[-1])), []
    for level in [*known[-2::-1], np.arange(vocab_size)]:
        path.append(key % vocab_size)
        key = int(level[key // vocab_size])
    return np.array([key, *reversed(path)])


@quick
@given(models(), st.integers(0, 99))
def test_probabilities_sum_to_one_at_every_state(model: NGramModel, seed: int) -> None:
    module = network(model).double()
    rng = np.random.default_rng(seed)
    states = module.random_states(20, rng)
    tokens = torch.from_numpy(rng.integers(0, module.vocab_size, (20, 3)))
    with torch.no_grad():
        probs, _ = module.probabilities(tokens, states)
    assert (probs >= 0).all()
    np.testing.assert_allclose(probs.sum(-1).numpy(), 1.0, rtol=1e-12)


@quick
@given(models(), st.integers(0, 20))
def test_a_text_may_be_read_in_two_pieces(model: NGramModel, cut: int) -> None:
    module = network(model)
    ids = torch.from_numpy(np.random.default_rng(cut).integers(0, module.vocab_size, (2, 22)))
    with torch.no_grad():
        whole, after = module(ids, module.initial_states(2))
        first, states = module(ids[:, : cut + 1], module.initial_states(2))
        second, after_both = module(ids[:, cut + 1 :], states)
    assert torch.equal(torch.cat([first, second], dim=1), whole)
    assert torch.equal(after_both[0], after[0])


@pytest.mark.parametrize("order", [2, 3, 6])
def test_random_states_are_nodes_of_the_trie(order: int) -> None:
    module = network(text_model(order))
    (states,) = module.random_states(200, np.random.default_rng(0))
    assert states.shape == (200, order - 1)
    assert states.dtype == torch.float32
    known = states > 0
    assert (known[:, :-1] >= known[:, 1:]).all()  # a history is known if a longer one is
    assert known.all(dim=1).any()  # the longest too
    assert not known.any(dim=1).all()  # the start of a text too
    assert states.max() < module.trie.root


def test_tokens_without_probability_have_the_least_logprob() -> None:
    module = network(text_model(3))
    logprobs, _ = module(torch.tensor([[BOS_ID]]), module.initial_states(1))
    assert logprobs.dtype == torch.float32
    assert logprobs.min() == pytest.approx(MIN_LOGPROB, rel=1e-7)
    assert logprobs[0, 0, BOS_ID] == logprobs.min()


def test_double_precision_is_more_precise_and_a_copy_of_the_tables() -> None:
    single, double = network(text_model(4)), network(text_model(4)).double()
    assert double.initial_states(1)[0].dtype == torch.float64
    ids = np.arange(30)
    assert read(single, ids).dtype == np.float32
    assert read(double, ids).dtype == np.float64
    assert 0 < np.abs(read(single, ids) - read(double, ids)).max() < 1e-7


def test_a_module_names_its_state_and_is_its_own_only_part() -> None:
    module = network(text_model(5))
    assert module.state_names == ["ngram_nodes"]
    assert module.state_shapes == [[4]]
    assert (module.networks, module.ngram, module.weights) == ((), module, (1.0,))


def test_order_1_is_refused() -> None:
    with pytest.raises(ValueError, match="order 2 is the least"):
        network(fitted([[4, 5]], 8, 1))
