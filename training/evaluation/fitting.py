"""Fitting the temperatures, weights and exponent of a mixture on held-out text.

N tokens, V vocabulary.

The likelihood of the text is raised by L-BFGS (Liu and Nocedal 1989) in all numbers at once, since
each depends on the others: a network that is too sure of itself alone may be just sure enough in a
mixture. At the best exponent, the mean entropy of the mixture's predictions equals its loss on the
text, since the derivative is 0. So it is calibrated there, but for the prior.

The fit is in double precision and goes on until the gradient is all but 0. The likelihood is flat
around its peak, so in single precision the search would stop where rounding, which depends on the
number of threads, happens to hide the slope (1e-4 apart in the weights).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from service.bundle.text import PAD_ID
from training.data.corpus import Split
from training.data.windows import SequentialWindows
from training.networks.language_model import LanguageModel
from training.networks.ngram import NGram

# Logits of one part that fit in memory; text beyond them is left out of the fit.
_MAX_LOGITS = 1 << 24
# Temperatures and exponent lie between 1 / 4 and 4. Their logarithms have a normal prior with this
# deviation, and weights one that is the product of them. Priors only matter where there is little
# text, or text that is predicted without a doubt.
_MOST = math.log(4.0)
_DEVIATION = 0.5
_ROUNDS = 60
_LEAST_GRADIENT = 1e-10
_LEAST_CHANGE = 1e-14
_CHUNK_VALUES = 1 << 20  # doubles of one part at a time
_LANES = 64
_WINDOW_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Shares:
    """The numbers that make a mixture of its parts."""

    weights: tuple[float, ...]  # networks first
    temperatures: tuple[float, ...]  # of the networks
    exponent: float = 1.0


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """The temperature of `logits` [N, V] that makes `targets` [N] likeliest."""
    return fit_mixture([logits], [], targets).temperatures[0]


def fit_shares(probs: Sequence[Tensor], targets: Tensor) -> tuple[tuple[float, ...], float]:
    """The weights and the exponent for given distributions [N, V] and `targets` [N]."""
    found = fit_mixture([], probs, targets)
    return found.weights, found.exponent


def fit_mixture(logits: Sequence[Tensor], probs: Sequence[Tensor], targets: Tensor) -> Shares:
    """The shares that make `targets` [N] likeliest, given what the parts predict there, [N, V].

    `logits` of networks get a temperature each, `probs` are taken as they are. A single part has
    the weight 1 and no exponent.
    """
    parts = len(logits) + len(probs)
    values = torch.zeros(len(logits) + parts + 1, dtype=torch.float64, requires_grad=True)
    rows = max(1, _CHUNK_VALUES // (*logits, *probs)[0].shape[-1])

    def shares() -> tuple[Tensor, Tensor, Tensor]:
        powers = (_MOST * torch.tanh(values / _MOST)).exp()
        weights = torch.softmax(values[len(logits) : -1], dim=0)
        return powers[: len(logits)], weights, powers[-1]

    def closure() -> float:
        """The loss; its gradient is added up over chunks of the text."""
        optimizer.zero_grad()
        off = torch.cat([values[: len(logits)], values[-1:]])
        prior = (off / _DEVIATION).square().sum() / 2 - torch.log(shares()[1]).sum()
        losses = [prior / len(targets)]
        losses[0].backward()  # type: ignore[no-untyped-call]
        for start in range(0, len(targets), rows):
            chunk = slice(start, start + rows)
            logprobs = _logprobs([x[chunk] for x in logits], [x[chunk] for x in probs], *shares())
            losses.append(-logprobs.gather(1, targets[chunk, None]).sum() / len(targets))
            losses[-1].backward()  # type: ignore[no-untyped-call]
        return math.fsum(float(x.detach()) for x in losses)

    optimizer = torch.optim.LBFGS(
        [values],
        max_iter=_ROUNDS,
        tolerance_grad=_LEAST_GRADIENT,
        tolerance_change=_LEAST_CHANGE,
        line_search_fn="strong_wolfe",
    )
    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        temperatures, weights, exponent = shares()
    return Shares(
        tuple(weights.tolist()),
        tuple(temperatures.tolist()),
        float(exponent) if parts > 1 else 1.0,
    )


def _logprobs(
    logits: Sequence[Tensor],
    probs: Sequence[Tensor],
    temperatures: Tensor,
    weights: Tensor,
    exponent: Tensor,
) -> Tensor:
    """`mixture.mixed` in double precision, with a gradient; a single part has no exponent."""
    tempered = [x.double() / t for x, t in zip(logits, temperatures, strict=True)]
    known = [x.double() for x in probs]
    if len(tempered) + len(known) == 1:
        return torch.log_softmax(tempered[0], dim=-1) if tempered else known[0].log()
    parts = [*(torch.softmax(x, dim=-1) for x in tempered), *known]
    total = sum(w * p for w, p in zip(weights, parts, strict=True))
    return torch.log_softmax(exponent * torch.log(total.clamp(min=1e-30)), dim=-1)


@torch.no_grad()
def predictions(part: LanguageModel | NGram, split: Split) -> tuple[Tensor, Tensor]:
    """A part's predictions at every predicted token of a split, [N, V], and the tokens, [N].

    Logits of a network, log p of an n-gram; the order of the tokens is the same for every part.
    """
    lanes = min(split.documents, _LANES)
    states = part.initial_states(lanes)
    found, targets = [], []
    for window in SequentialWindows(split, lanes, max(1, _WINDOW_TOKENS // lanes)):
        keep = torch.from_numpy(~window.reset).unsqueeze(1)
        tokens = torch.from_numpy(window.tokens)
        logits, states = part(tokens, [state * keep for state in states])  # [B, T, V]
        read = window.targets != PAD_ID
        found.append(logits[torch.from_numpy(read)])
        targets.append(torch.from_numpy(window.targets[read]))
    return torch.cat(found), torch.cat(targets)


def text_to_fit(split: Split, vocab_size: int) -> Split:
    """The beginning of a split, as much of it as a fit reads."""
    return split.first(_MAX_LOGITS // vocab_size)
