"""Output layers that learn from the text that is read.

B batch, T time, V vocabulary, H hidden, R numbers of a feature (`rank`, or H).

Dynamic evaluation (Mikolov et al. 2010; Krause et al. 2018) of the output layer alone, whose
gradient has a closed form. With h_t the last layer's outputs, z_t the logits and f_t = P h_t:

    p_t = softmax(s z_t + D_t f_t)                               first the prediction,
    D_t+1 = (1 - decay) D_t - rate (p_t - e_y) f_t^T             learned once token y has come.

D is zero where a text begins. Every network has a D of its own and learns from its own prediction;
an n-gram does not adapt. The predictions are then mixed as always, with weights for this use.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from training.networks.mixture import AnyLanguageModel, mixed
from training.networks.recurrent import States


@dataclass(frozen=True, slots=True, kw_only=True)
class Adaptation:
    """How a model's output layers adapt; the numbers are fitted at export."""

    rate: float
    decay: float  # what D loses at every token
    projections: Sequence[npt.NDArray[np.float32] | None]  # [R, H] a network; None: f is h
    scales: Sequence[float]  # s: each network's logits are multiplied by it
    weights: Sequence[float]  # of the mixture's parts, while adapting
    exponent: float  # of the mixture, while adapting

    def feature_size(self, model: AnyLanguageModel, i: int) -> int:
        """R of network i."""
        projection = self.projections[i]
        return model.networks[i].config.hidden_size if projection is None else len(projection)


class Adapting(nn.Module):
    """A model whose output layers adapt, one token at a time, as the formulas say."""

    def __init__(self, model: AnyLanguageModel, adaptation: Adaptation) -> None:
        super().__init__()
        self.model = model
        self.adaptation = adaptation
        self.vocab_size = model.vocab_size
        for i, projection in enumerate(adaptation.projections):
            value = None if projection is None else torch.from_numpy(projection)
            self.register_buffer(f"projection{i}", value)

    def initial_states(self, batch_size: int) -> States:
        """The model's, and for each network D [B, V, R], f [B, R] and p [B, V], all zero."""
        return (*self.model.initial_states(batch_size), *self.initial_adapted(batch_size))

    def initial_adapted(self, batch_size: int) -> States:
        """What `adapt` carries: D, f and p of each network."""
        found = []
        for i, network in enumerate(self.model.networks):
            size = self.adaptation.feature_size(self.model, i)
            zeros = network.output.weight.new_zeros
            found += [
                zeros(batch_size, self.vocab_size, size),
                zeros(batch_size, size),
                zeros(batch_size, self.vocab_size),
            ]
        return tuple(found)

    def forward(self, tokens: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, States]:
        """log p [B, T, V] of the token after each of `tokens` [B, T], and the states after."""
        hidden, logits = [], []
        after: list[Tensor] = []
        start = 0
        for network in self.model.networks:
            end = start + len(network.state_names)
            outputs, new = network.outputs(tokens, states[start:end])
            hidden.append(outputs)
            logits.append(network.output(outputs))
            after.extend(new)
            start = end
        probs = None
        if self.model.ngram is not None:
            end = start + len(self.model.ngram.state_names)
            probs, new = self.model.ngram.probabilities(tokens, states[start:end])
            after.extend(new)
            start = end
        logprobs, adapted = self.adapt(tokens, hidden, logits, probs, states[start:])
        return logprobs, (*after, *adapted)

    def adapt(
        self,
        tokens: Tensor,
        hidden: Sequence[Tensor],
        logits: Sequence[Tensor],
        probs: Tensor | None,
        states: Sequence[Tensor],
    ) -> tuple[Tensor, States]:
        """The same, from every network's `hidden` [B, T, H] and `logits` [B, T, V].

        `probs` [B, T, V] are an n-gram's; `states` as in `initial_adapted`.
        """
        adapted: list[Tensor] = []
        after: list[Tensor] = []
        for i, (h, z) in enumerate(zip(hidden, logits, strict=True)):
            found, new = self._network(i, tokens, h, z, states[3 * i : 3 * i + 3])
            adapted.append(found)
            after.extend(new)
        options = self.adaptation
        return mixed(adapted, probs, options.weights, options.exponent), tuple(after)

    def _network(
        self, i: int, tokens: Tensor, hidden: Tensor, logits: Tensor, states: Sequence[Tensor]
    ) -> tuple[Tensor, States]:
        """The logits [B, T, V] of network i while it adapts, and D, f and p after."""
        options = self.adaptation
        projection = getattr(self, f"projection{i}")
        features = hidden if projection is None else hidden @ projection.T  # [B, T, R]
        weights, feature, prediction = states
        found = []
        for t in range(tokens.shape[1]):
            came = functional.one_hot(tokens[:, t], self.vocab_size).to(prediction)
            error = prediction - came  # [B, V]; nothing was predicted where feature is still zero
            outer = error[:, :, None] * feature[:, None, :]  # [B, V, R]
            weights = (1.0 - options.decay) * weights - options.rate * outer
            feature = features[:, t]
            change = (weights @ feature[:, :, None])[:, :, 0]  # [B, V]
            found.append(options.scales[i] * logits[:, t] + change)
            prediction = torch.softmax(found[-1], dim=-1)
        return torch.stack(found, dim=1), (weights, feature, prediction)
