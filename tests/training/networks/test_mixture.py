"""A mixture: a weighted average of probabilities, with the states of all its parts."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.training.helpers import split_of, tiny_model
from training.evaluation import ngram
from training.evaluation.ngram_network import network
from training.networks.mixture import LEAST_PROBABILITY, Mixture, mixed
from training.networks.ngram import NGram

V = 11


def counted() -> NGram:
    split = split_of([[4, 5, 6, 7, 4, 5, 6, 8], [9, 10, 4, 5]])
    return network(ngram.fit(split.ids, split.starts, V, 3)[-1])


def mixture(weights: tuple[float, ...] = (0.5, 0.3, 0.2), exponent: float = 1.3) -> Mixture:
    networks = [tiny_model(V, cell="lstm"), tiny_model(V, cell="gru", num_layers=2)]
    return Mixture(networks, counted(), weights, exponent).eval()


def tokens() -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(2, V, (3, 7)))


def test_the_states_are_those_of_all_parts() -> None:
    model = mixture()
    assert model.state_names == ["h0", "c0", "p1_h0", "p1_h1", "ngram_nodes"]
    assert [list(x.shape[1:]) for x in model.initial_states(3)] == model.state_shapes
    drawn = model.random_states(3, np.random.default_rng(0))
    assert [list(x.shape) for x in drawn] == [[3, *shape] for shape in model.state_shapes]


@torch.no_grad()
def test_it_is_the_average_of_its_parts_to_the_power_of_the_exponent() -> None:
    model = mixture()
    logprobs, _ = model(tokens(), model.initial_states(3))
    average: Tensor | float = 0.0
    for weight, part in zip(model.weights, model.parts, strict=True):
        found, _ = part(tokens(), part.initial_states(3))
        average = average + weight * torch.softmax(found, -1)
    assert isinstance(average, Tensor)
    powers = average**1.3
    wanted = powers / powers.sum(-1, keepdim=True)
    torch.testing.assert_close(logprobs.exp(), wanted, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_a_text_is_the_same_in_one_call_and_in_pieces() -> None:
    model = mixture()
    whole, after = model(tokens(), model.initial_states(3))
    first, states = model(tokens()[:, :3], model.initial_states(3))
    second, states = model(tokens()[:, 3:], states)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    for found, wanted in zip(states, after, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("exponent", [None, 0.7, 1.0, 1.5])
def test_what_is_impossible_has_a_finite_log_probability(exponent: float | None) -> None:
    probs = torch.zeros(1, 1, V)
    probs[..., 4] = 1.0
    logprobs = mixed([], probs, (1.0,), exponent)
    assert logprobs.min() >= np.log(LEAST_PROBABILITY) - 1e-4
    assert logprobs.max() == pytest.approx(0.0, abs=1e-6)


@torch.no_grad()
def test_a_temperature_divides_the_logits_and_leaves_the_model_as_it_is() -> None:
    model = tiny_model(V, hidden_size=6, embedding_dim=6, tie_embeddings=True)
    logits, _ = model(tokens(), model.initial_states(3))
    cooler, _ = model.tempered(2.0)(tokens(), model.initial_states(3))
    torch.testing.assert_close(cooler, logits / 2)
    again, _ = model(tokens(), model.initial_states(3))
    assert torch.equal(again, logits)
    assert model.tempered(1.0) is model
