"""Temperatures, weights and exponents: the ones that text was drawn with are found again."""

import math

import pytest
import torch
from torch import Tensor

from tests.training.helpers import split_of, tiny_model
from training.evaluation import ngram
from training.evaluation.fitting import fit_mixture, fit_shares, fit_temperature, predictions
from training.evaluation.ngram_network import network
from training.networks.mixture import mixed

N, V = 20_000, 12


@pytest.fixture
def draw() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def drawn(logprobs: Tensor, draw: torch.Generator) -> Tensor:
    return torch.multinomial(logprobs.exp(), 1, generator=draw)[:, 0]


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_the_temperature_that_text_was_drawn_at_is_found(
    temperature: float, draw: torch.Generator
) -> None:
    logits = 3 * torch.randn(N, V, generator=draw)
    targets = drawn(torch.log_softmax(logits / temperature, -1), draw)
    assert fit_temperature(logits, targets) == pytest.approx(temperature, rel=0.03)


def test_weights_and_exponent_are_found(draw: torch.Generator) -> None:
    probs = [torch.softmax(3 * torch.randn(N, V, generator=draw), -1) for _ in range(3)]
    weights, exponent = (0.6, 0.3, 0.1), 1.4
    logs = torch.log(sum((w * p for w, p in zip(weights, probs, strict=True)), torch.zeros(V)))
    targets = drawn(torch.log_softmax(exponent * logs, -1), draw)
    found, power = fit_shares(probs, targets)
    assert found == pytest.approx(weights, abs=0.03)
    assert power == pytest.approx(exponent, rel=0.04)
    assert sum(found) == pytest.approx(1.0)


def test_a_mixture_expects_what_its_text_costs(draw: torch.Generator) -> None:
    logits = [3 * torch.randn(N, V, generator=draw) for _ in range(2)]
    probs = torch.softmax(logits[1], -1)
    targets = drawn(torch.log(0.7 * torch.softmax(logits[0] / 0.8, -1) + 0.3 * probs), draw)
    found = fit_mixture(logits[:1], [probs], targets)
    tempered = [logits[0] / found.temperatures[0]]
    logprobs = mixed(tempered, probs, found.weights, found.exponent)
    observed = -logprobs.gather(1, targets[:, None]).mean()
    expected = -(logprobs.exp() * logprobs).sum(-1).mean()
    assert float(expected) == pytest.approx(float(observed), rel=0.002)
    plain = mixed(logits[:1], probs, (0.5, 0.5), 1.0)
    assert observed < -plain.gather(1, targets[:, None]).mean()


def test_a_single_part_has_all_the_weight_and_no_exponent(draw: torch.Generator) -> None:
    found = fit_mixture([torch.randn(N, V, generator=draw)], [], torch.zeros(N, dtype=torch.int64))
    assert (found.weights, found.exponent) == ((1.0,), 1.0)


def test_text_that_is_predicted_without_a_doubt_keeps_its_numbers_finite() -> None:
    targets = torch.arange(600) % V
    logits = 200.0 * torch.nn.functional.one_hot(targets, V)
    found = fit_mixture([logits], [torch.full((600, V), 1 / V)], targets)
    assert all(map(math.isfinite, (*found.weights, *found.temperatures, found.exponent)))
    assert found.weights[0] > 0.8
    assert min(found.weights) > 0.0


def test_every_part_is_read_in_the_same_order() -> None:
    split = split_of([[4, 5, 6, 7], [8, 9], [5] * 9])
    model = tiny_model(11)
    counted = network(ngram.fit(split.ids, split.starts, 11, 3)[-1])
    logits, targets = predictions(model, split)
    logprobs, same = predictions(counted, split)
    assert torch.equal(targets, same)
    assert len(logits) == len(logprobs) == split.tokens
    assert logprobs.gather(1, same[:, None]).exp().mean() > 0.2  # it was counted on this text


def test_the_last_bits_of_the_predictions_do_not_matter(draw: torch.Generator) -> None:
    """Another number of threads rounds otherwise; the same numbers are found."""
    logits = 3 * torch.randn(N, V, generator=draw)
    probs = torch.softmax(0.6 * logits + torch.randn(N, V, generator=draw), -1)
    targets = drawn(torch.log(0.7 * torch.softmax(logits / 0.8, -1) + 0.3 * probs), draw)
    rounded = logits * (1.0 + 2.0**-23 * torch.randint(-2, 3, (N, V), generator=draw))
    assert (rounded != logits).any()
    first, second = (fit_mixture([x], [probs], targets) for x in (logits, rounded))
    for name in ("weights", "temperatures"):
        assert getattr(first, name) == pytest.approx(getattr(second, name), abs=2e-7)
    assert first.exponent == pytest.approx(second.exponent, abs=2e-7)
