"""The recurrent language model.

B batch, T time, V vocabulary, E embedding, H hidden.
"""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from training.config import LanguageModelNetworkConfig
from training.networks import initial
from training.networks.dropout import Dropout, dropout_mask
from training.networks.recurrent import RecurrentLayer, RecurrentLayers, States


class LanguageModel(nn.Module):
    """p(next character | everything before it), with the state in and out."""

    def __init__(self, config: LanguageModelNetworkConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.ngram = None  # as the only part of what a `Mixture` would be
        self.weights = (1.0,)
        self.exponent = 1.0
        self.embedding = initial.embedding(vocab_size, config.embedding_dim)
        self.layers = RecurrentLayers(
            config.cell, config.embedding_dim, config.hidden_size, config.num_layers
        )
        self.output = initial.linear(config.hidden_size, vocab_size)
        if config.tie_embeddings:
            self.output.weight = self.embedding.weight

    @property
    def state_names(self) -> list[str]:
        """Names of the state tensors in order: `h0`, `c0`, `h1` and so on."""
        return self.layers.state_names

    @property
    def state_shapes(self) -> list[list[int]]:
        """Sizes after the batch axis, in the same order."""
        return [[self.config.hidden_size]] * len(self.state_names)

    @property
    def networks(self) -> Sequence["LanguageModel"]:
        """Itself."""
        return (self,)

    @property
    def recurrent_layers(self) -> list[RecurrentLayer]:
        """The recurrent layers, first to last."""
        return self.layers.recurrent_layers

    def initial_states(self, batch_size: int) -> States:
        """Zeros, [B, H] each."""
        zeros = self.output.weight.new_zeros(batch_size, self.config.hidden_size)
        return tuple(zeros.clone() for _ in self.state_names)

    def random_states(self, batch_size: int, rng: np.random.Generator) -> States:
        """Anything between -1 and 1, [B, H] each."""
        shape = (batch_size, self.config.hidden_size)
        draws = (rng.uniform(-1.0, 1.0, shape).astype(np.float32) for _ in self.state_names)
        return tuple(map(torch.from_numpy, draws))

    def tempered(self, temperature: float) -> "LanguageModel":
        """A copy whose logits are divided by `temperature`, in its output layer's weights.

        It shares no weights between input and output. At a temperature of 1 it is this model.
        """
        if temperature == 1.0:
            return self
        found = copy.deepcopy(self)
        for name in ("weight", "bias"):
            scaled = getattr(self.output, name).detach() / temperature
            setattr(found.output, name, nn.Parameter(scaled))
        return found

    def forward(
        self,
        tokens: Tensor,
        states: Sequence[Tensor],
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, States]:
        """Logits [B, T, V] of the token after each of `tokens` [B, T], and the states after.

        In training mode `generator` draws the dropout masks; None takes torch's own.
        """
        x, after = self._outputs_by_time(tokens, states, generator)
        return self.output(x).transpose(0, 1), after  # [B, T, V]

    def outputs(self, tokens: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, States]:
        """What the output layer reads, [B, T, H], and the states after."""
        x, after = self._outputs_by_time(tokens, states, None)
        return x.transpose(0, 1), after

    def _outputs_by_time(
        self, tokens: Tensor, states: Sequence[Tensor], generator: torch.Generator | None
    ) -> tuple[Tensor, States]:
        """[T, B, H] and the states after."""
        config = self.config

        def dropout(probability: float) -> Dropout:
            return Dropout(probability, generator, training=self.training)

        def weight_mask(weight: Tensor) -> Tensor | None:
            if not self.training or config.weight_drop == 0.0:
                return None
            return dropout_mask(weight, config.weight_drop, generator)

        x = dropout(config.dropout_input)(self.embedding(tokens.t()))  # [T, B, E]
        between = [dropout(config.dropout_between) for _ in range(config.num_layers - 1)]
        x, after = self.layers(x, states, between, weight_mask)  # [T, B, H]
        x = dropout(config.dropout_output)(x)
        return x, after
