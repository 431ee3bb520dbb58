"""The recurrent language model.

B batch, T time, V vocabulary, E embedding, H hidden, G gates of the cell (rnn 1, gru 3, lstm 4).
Time is axis 0 inside, since that is what the recurrent kernels read fastest.
"""

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from training.config import LanguageModelNetworkConfig

GATES = {"rnn": 1, "gru": 3, "lstm": 4}
# Names of a layer's state tensors, in order; the exporter and the bundle use the same.
STATE_NAMES = {"rnn": ("h",), "gru": ("h",), "lstm": ("h", "c")}

States: TypeAlias = tuple[Tensor, ...]


class RecurrentLayer(nn.Module):
    """One layer of a tanh RNN, GRU (Cho et al. 2014, reset after the product) or LSTM.

    Weights lie as in torch's own modules: gates stacked on axis 0, in the order (r, z, n) for the
    GRU and (i, f, g, o) for the LSTM. The recurrent matrices start orthogonal, and the forget
    gate's bias at 1 (Jozefowicz et al. 2015).
    """

    def __init__(self, cell: str, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.cell = cell
        gates = GATES[cell]
        self.weight_ih = nn.Parameter(torch.empty(gates * hidden_size, input_size))
        self.weight_hh = nn.Parameter(torch.empty(gates * hidden_size, hidden_size))
        self.bias_ih = nn.Parameter(torch.zeros(gates * hidden_size))
        self.bias_hh = nn.Parameter(torch.zeros(gates * hidden_size))
        for gate in range(gates):
            rows = slice(gate * hidden_size, (gate + 1) * hidden_size)
            nn.init.xavier_uniform_(self.weight_ih.data[rows])
            nn.init.orthogonal_(self.weight_hh.data[rows])
        if cell == "lstm":
            self.bias_ih.data[hidden_size : 2 * hidden_size] = 1.0

    def forward(
        self, inputs: Tensor, states: States, weight_mask: Tensor | None
    ) -> tuple[Tensor, States]:
        """Read `inputs` [T, B, E] from `states` ([B, H] each); outputs [T, B, H] and new states.

        `weight_mask` scales the recurrent matrix, one mask for the whole window: DropConnect as
        in Merity et al. 2017.
        """
        weight_hh = self.weight_hh if weight_mask is None else self.weight_hh * weight_mask
        weights = [self.weight_ih, weight_hh, self.bias_ih, self.bias_hh]
        initial = [state.unsqueeze(0) for state in states]  # [1, B, H]
        # has_biases, num_layers, dropout, train, bidirectional, batch_first
        options = (True, 1, 0.0, self.training, False, False)
        if self.cell == "lstm":
            outputs, h, c = torch.lstm(inputs, initial, weights, *options)
            return outputs, (h.squeeze(0), c.squeeze(0))
        kernel = torch.gru if self.cell == "gru" else torch.rnn_tanh
        outputs, h = kernel(inputs, initial[0], weights, *options)
        return outputs, (h.squeeze(0),)


class LanguageModel(nn.Module):
    """p(next character | everything before it), with the state in and out."""

    def __init__(self, config: LanguageModelNetworkConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.embedding = nn.Embedding(vocab_size, config.embedding_dim)
        nn.init.normal_(self.embedding.weight, std=1.0 / math.sqrt(config.embedding_dim))
        sizes = [config.embedding_dim] + [config.hidden_size] * config.num_layers
        self.layers = nn.ModuleList(
            RecurrentLayer(config.cell, sizes[i], sizes[i + 1]) for i in range(config.num_layers)
        )
        self.output = nn.Linear(config.hidden_size, vocab_size)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        if config.tie_embeddings:
            self.output.weight = self.embedding.weight

    @property
    def state_names(self) -> list[str]:
        """Names of the state tensors in order: `h0`, `c0`, `h1` and so on."""
        names = STATE_NAMES[self.config.cell]
        return [f"{name}{i}" for i in range(self.config.num_layers) for name in names]

    @property
    def recurrent_layers(self) -> list[RecurrentLayer]:
        """The recurrent layers, first to last."""
        return [layer for layer in self.layers if isinstance(layer, RecurrentLayer)]

    def initial_states(self, batch_size: int) -> States:
        """Zeros, [B, H] each."""
        zeros = self.output.weight.new_zeros(batch_size, self.config.hidden_size)
        return tuple(zeros.clone() for _ in self.state_names)

    def forward(
        self,
        tokens: Tensor,
        states: Sequence[Tensor],
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, States]:
        """Logits [B, T, V] of the token after each of `tokens` [B, T], and the states after.

        In training mode `generator` draws the dropout masks; None takes torch's own.
        """
        config = self.config
        x = self.embedding(tokens.t())  # [T, B, E]
        x = self._locked_dropout(x, config.dropout_input, generator)
        per_layer = len(STATE_NAMES[config.cell])
        after: list[Tensor] = []
        for i, layer in enumerate(self.recurrent_layers):
            if i:
                x = self._locked_dropout(x, config.dropout_between, generator)
            before = tuple(states[i * per_layer : (i + 1) * per_layer])
            weight_mask = self._mask(layer.weight_hh, config.weight_drop, generator)
            x, new_states = layer(x, before, weight_mask)  # [T, B, H]
            after.extend(new_states)
        x = self._locked_dropout(x, config.dropout_output, generator)
        return self.output(x).transpose(0, 1), tuple(after)  # [B, T, V]

    def _locked_dropout(
        self, x: Tensor, probability: float, generator: torch.Generator | None
    ) -> Tensor:
        """Dropout with one mask for all time steps (Gal and Ghahramani 2016)."""
        mask = self._mask(x[:1], probability, generator)  # [1, B, D]
        return x if mask is None else x * mask

    def _mask(
        self, like: Tensor, probability: float, generator: torch.Generator | None
    ) -> Tensor | None:
        """Zeros with the probability, else what keeps the mean; None outside of training."""
        if not self.training or probability == 0.0:
            return None
        mask = torch.empty_like(like, requires_grad=False)
        return mask.bernoulli_(1.0 - probability, generator=generator).div_(1.0 - probability)
