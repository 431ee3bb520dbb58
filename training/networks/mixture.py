"""Several models as one: a weighted average of their probabilities.

B batch, T time, V vocabulary.
"""

from collections.abc import Iterable, Sequence
from typing import TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, nn

from training.networks.language_model import LanguageModel
from training.networks.ngram import NGram
from training.networks.recurrent import States

LEAST_PROBABILITY = 2.0**-126  # the smallest normal number in single precision


class Mixture(nn.Module):
    """p(x) ~ (sum_i w_i p_i(x))^g, of networks and at most one n-gram that read the same tokens.

    A linear interpolation (Jelinek and Mercer 1980) of parts that are each calibrated is too unsure
    of itself (Ranjan and Gneiting 2010); the exponent g puts that right. The states are
    those of all parts: the first network's have their own names, those of network i the prefix
    `p<i>_`, and the n-gram's come last. `weights`: one for each network, then the n-gram's; they
    add up to 1.
    """

    def __init__(
        self,
        networks: Sequence[LanguageModel],
        ngram: NGram | None,
        weights: Sequence[float],
        exponent: float = 1.0,
    ) -> None:
        super().__init__()
        self._networks = nn.ModuleList(networks)
        self.ngram = ngram
        self.weights = tuple(weights)
        self.exponent = exponent
        self.vocab_size = networks[0].vocab_size

    @property
    def networks(self) -> Sequence[LanguageModel]:
        """The networks, in the order of their weights."""
        return list(cast("Iterable[LanguageModel]", self._networks))

    @property
    def parts(self) -> Sequence[LanguageModel | NGram]:
        """The networks and the n-gram, in the order of their weights."""
        return [*self.networks, *([] if self.ngram is None else [self.ngram])]

    @property
    def state_names(self) -> list[str]:
        """Names of the state tensors in order."""
        prefixes = [part_prefix(i) for i in range(len(self.networks))] + [""]
        parts = zip(prefixes, self.parts, strict=False)
        return [prefix + name for prefix, part in parts for name in part.state_names]

    @property
    def state_shapes(self) -> list[list[int]]:
        """Sizes after the batch axis, in the same order."""
        return [shape for part in self.parts for shape in part.state_shapes]

    def initial_states(self, batch_size: int) -> States:
        """Zeros, [B, n] each."""
        return tuple(x for part in self.parts for x in part.initial_states(batch_size))

    def random_states(self, batch_size: int, rng: np.random.Generator) -> States:
        """States that the parts can be in, [B, n] each."""
        return tuple(x for part in self.parts for x in part.random_states(batch_size, rng))

    def split_states(self, states: Sequence[Tensor]) -> list[Sequence[Tensor]]:
        """The states of each part, in the order of the weights."""
        found, start = [], 0
        for part in self.parts:
            end = start + len(part.state_names)
            found.append(states[start:end])
            start = end
        return found

    def forward(self, tokens: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, States]:
        """log p [B, T, V] of the token after each of `tokens` [B, T], and the states after."""
        logits: list[Tensor] = []
        after: list[Tensor] = []
        *own, last = self.split_states(states)
        own += [last] if self.ngram is None else []
        for network, before in zip(self.networks, own, strict=True):
            found, new = network(tokens, before)
            logits.append(found)
            after.extend(new)
        probs = None
        if self.ngram is not None:
            probs, new = self.ngram.probabilities(tokens, last)
            after.extend(new)
        return mixed(logits, probs, self.weights, self.exponent), tuple(after)


AnyLanguageModel: TypeAlias = LanguageModel | Mixture | NGram


def part_prefix(i: int) -> str:
    """The beginning of the names of network i, in a graph that holds several."""
    return f"p{i}_" if i else ""


def mixed(
    logits: Sequence[Tensor],
    probs: Tensor | None,
    weights: Sequence[float],
    exponent: float | None,
) -> Tensor:
    """log p of a mixture: networks' `logits` and an n-gram's `probs`, all [B, T, V].

    Without an exponent nothing is normalized.
    """
    parts = [torch.softmax(x, dim=-1) for x in logits]
    parts += [] if probs is None else [probs]
    total = weights[0] * parts[0]
    for weight, part in zip(weights[1:], parts[1:], strict=True):
        total = total + weight * part
    logs = torch.log(total.clamp(min=least_probability(exponent)))
    return logs if exponent is None else torch.log_softmax(exponent * logs, dim=-1)


def least_probability(exponent: float | None) -> float:
    """Sums below this are replaced by it, so that log p is at least log LEAST_PROBABILITY."""
    return float(LEAST_PROBABILITY ** (1.0 / max(1.0, exponent or 1.0)))
