"""What mixing a network with an n-gram gains, and what more weights would add.

    python -m bench.mixture RUN [--order 8]

RUN is the folder of a trained network. Everything is fitted on its text for fitting, and measured
on the text that figures are reported on: the network, the same with a temperature, the n-gram, and
mixtures of both without an exponent, with one, and with a weight for each length of the history
that the n-gram knows.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from training.data import corpus as corpora
from training.data.corpus import Split
from training.evaluation import ngram
from training.evaluation.fitting import (
    Shares,
    fit_mixture,
    fit_temperature,
    predictions,
    text_to_fit,
)
from training.evaluation.ngram_network import network
from training.loop.language_model import load_best
from training.networks.language_model import LanguageModel
from training.networks.mixture import mixed
from training.networks.ngram import NGram

_ROUNDS = 50  # of expectation maximization
_PRIOR = 5.0  # strength of the common weight in each length's, in tokens


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table of nats a token and bits a token."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--order", type=int, default=8)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    _, model, _ = load_best(options.run)
    corpus = corpora.load(options.run / "corpus")
    if corpus.fitting is None:
        parser.error("the run has too little validation text to fit anything on")
    vocab_size = len(corpus.vocab)
    for row in table(
        model,
        corpus.train,
        text_to_fit(corpus.fitting, vocab_size),
        corpus.held_out,
        options.order,
    ):
        sys.stdout.write(row + "\n")


def table(
    model: LanguageModel, train: Split, fitting: Split, held_out: Split, order: int
) -> list[str]:
    """A row for each way to put the two together."""
    counted = network(ngram.fit(train.ids, train.starts, model.vocab_size, order)[-1]).eval()
    fit_logits, fit_targets = predictions(model, fitting)
    logits, targets = predictions(model, held_out)
    fit_probs, probs = (predictions(counted, x)[0].exp() for x in (fitting, held_out))
    temperature = fit_temperature(fit_logits, fit_targets)
    shares = fit_mixture([fit_logits], [fit_probs], fit_targets)
    plain = Shares(_weights(fit_logits, fit_probs, fit_targets), (1.0,))
    fit_found, found = (histories_found(counted, x) for x in (fitting, held_out))
    by_order = _weights_by_order(fit_logits, fit_probs, fit_targets, fit_found, plain.weights[0])

    def cost(logprobs: Tensor) -> float:
        return -float(logprobs.gather(1, targets[:, None]).double().mean())

    def of(x: Shares) -> float:
        return cost(mixed([logits / x.temperatures[0]], probs, x.weights, x.exponent))

    def expected(logits: Tensor, probs: Tensor, targets: Tensor) -> str:
        mixture = mixed([logits / shares.temperatures[0]], probs, shares.weights, shares.exponent)
        entropy = -float((mixture.exp() * mixture).sum(dim=1).double().mean())
        return f"{entropy / -float(mixture.gather(1, targets[:, None]).double().mean()):.3f}"

    shared = by_order[found][:, None]
    rows = {
        "network": cost(torch.log_softmax(logits, -1)),
        f"temperature {temperature:.3f}": cost(torch.log_softmax(logits / temperature, -1)),
        f"{order}-gram": cost(probs.log()),
        f"mixture, weight {plain.weights[0]:.3f}": of(plain),
        "mixture, a weight an order": cost(
            torch.log(shared * torch.softmax(logits, -1) + (1.0 - shared) * probs)
        ),
        f"all fitted: temperature {shares.temperatures[0]:.3f}, weight {shares.weights[0]:.3f}, "
        f"exponent {shares.exponent:.3f}": of(shares),
    }
    head = f"{'':<64}{'nats':>9}{'bits':>9}"
    calibration = (
        f"all fitted, expected over observed surprisal: {expected(logits, probs, targets)}, and on "
        f"the text of the fit {expected(fit_logits, fit_probs, fit_targets)}"
    )
    lines = (f"{x:<64}{y:>9.4f}{y / math.log(2):>9.4f}" for x, y in rows.items())
    return [head, *lines, calibration]


@torch.no_grad()
def histories_found(model: NGram, split: Split) -> Tensor:
    """[N] how many tokens of the history the n-gram knows at each predicted token.

    Raises ValueError for several documents, which `predictions` does not read one after another.
    """
    if split.documents > 1:
        raise ValueError("only a text of one document is measured")
    states = model.initial_states(1)
    rows = []
    for token in split.ids[:-1].tolist():
        _, states = model.probabilities(torch.tensor([[token]]), states)
        rows.append((states[0] > 0).sum())
    return torch.stack(rows)


def _chosen(logits: Tensor, probs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """[N] the probabilities of the targets, by the network and by the n-gram."""
    column = targets[:, None]
    return torch.softmax(logits, -1).gather(1, column)[:, 0], probs.gather(1, column)[:, 0]


def _weights(logits: Tensor, probs: Tensor, targets: Tensor) -> tuple[float, float]:
    """By expectation maximization, without temperature and exponent."""
    mine, other = _chosen(logits, probs, targets)
    weight = 0.5
    for _ in range(_ROUNDS):
        weight = float((weight * mine / (weight * mine + (1.0 - weight) * other)).mean())
    return weight, 1.0 - weight


def _weights_by_order(
    logits: Tensor, probs: Tensor, targets: Tensor, found: Tensor, common: float
) -> Tensor:
    """The network's weight for each length of history that is known, by the same method."""
    mine, other = _chosen(logits, probs, targets)
    weights = torch.full((int(found.max()) + 32,), common)
    counts = torch.bincount(found, minlength=len(weights)) + _PRIOR
    for _ in range(_ROUNDS):
        own = weights[found]
        posterior = own * mine / (own * mine + (1.0 - own) * other)
        sums = torch.bincount(found, posterior, minlength=len(weights)) + _PRIOR * common
        weights = (sums / counts).float()
    return weights


if __name__ == "__main__":
    main()
