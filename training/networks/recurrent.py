"""Recurrent layers and the states that they carry.

B batch, T time, E the input's features, H hidden, G gates of the cell (rnn 1, gru 3, lstm 4). Time
is axis 0: the recurrent kernels are fastest that way.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn

from service.bundle.manifest import Cell
from training.networks.dropout import Dropout

GATES = {"rnn": 1, "gru": 3, "lstm": 4}
# Names of a layer's state tensors, in order; graphs and bundles use the same ones.
STATE_NAMES = {"rnn": ("h",), "gru": ("h",), "lstm": ("h", "c")}

States: TypeAlias = tuple[Tensor, ...]


class _CellSizes(Protocol):
    """What a configuration says of the recurrent layers."""

    @property
    def cell(self) -> Cell: ...

    @property
    def hidden_size(self) -> int: ...


class ForwardLayers(Protocol):
    """Recurrent layers over embedded tokens, read forward from explicit states."""

    @property
    def embedding(self) -> nn.Embedding:
        """Of the tokens."""

    @property
    def config(self) -> _CellSizes:
        """Their cell and their size."""

    @property
    def recurrent_layers(self) -> "list[RecurrentLayer]":
        """First to last."""

    @property
    def state_names(self) -> list[str]:
        """Names of the layers' states, in order."""


class RecurrentLayer(nn.Module):
    """One layer of a tanh RNN, GRU (Cho et al. 2014, reset after the product) or LSTM.

    The weights have the layout of torch's own modules: gates stacked on axis 0, in the order
    (r, z, n) for the GRU and (i, f, g, o) for the LSTM. The recurrent matrices start orthogonal,
    and the forget gate's bias at 1 (Jozefowicz et al. 2015).
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


class RecurrentLayers(nn.ModuleList):
    """Recurrent layers of one cell, each reading the outputs of the one below."""

    def __init__(self, cell: str, input_size: int, hidden_size: int, num_layers: int) -> None:
        sizes = [input_size] + [hidden_size] * num_layers
        super().__init__(RecurrentLayer(cell, sizes[i], hidden_size) for i in range(num_layers))
        self.cell = cell

    @property
    def state_names(self) -> list[str]:
        """Names of the state tensors in order: `h0`, `c0`, `h1` and so on."""
        return [f"{name}{i}" for i in range(len(self)) for name in STATE_NAMES[self.cell]]

    @property
    def recurrent_layers(self) -> list[RecurrentLayer]:
        """The layers, first to last."""
        return [layer for layer in self if isinstance(layer, RecurrentLayer)]

    def forward(
        self,
        x: Tensor,
        states: Sequence[Tensor],
        between: Sequence[Dropout],
        weight_mask: Callable[[Tensor], Tensor | None] = lambda _: None,
    ) -> tuple[Tensor, States]:
        """The last layer's outputs [T, B, H] for `x` [T, B, E], and the states after.

        `between` holds a dropout for the input of every layer but the first; `weight_mask` draws
        the mask for a layer's recurrent matrix.
        """
        per_layer = len(STATE_NAMES[self.cell])
        after: list[Tensor] = []
        for i, layer in enumerate(self.recurrent_layers):
            if i:
                x = between[i - 1](x)
            before = tuple(states[i * per_layer : (i + 1) * per_layer])
            x, new_states = layer(x, before, weight_mask(layer.weight_hh))  # [T, B, H]
            after.extend(new_states)
        return x, tuple(after)
