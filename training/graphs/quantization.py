"""Eight-bit weights and seven-bit states, with scales that are fixed before any input is seen.

B batch, T time, V vocabulary, H hidden, G gates of the cell (rnn 1, gru 3, lstm 4), K inputs.

|h| <= 1 for the tanh RNN, the GRU and the LSTM, whatever they read. So h becomes round(63 h) + 64,
an integer of 1 to 127, with a scale that depends on nothing: the rows of a batch cannot meet in it.
Weights get one scale an output channel, max |w| / 127. The products are sums of integers, which are
exact in any order, and pairs of them (at most 2 · 127 · 127) fit in 16 bits: CPUs without VNNI
instructions, which add such pairs with saturation, give the same sums as those with them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from training.graphs.builder import array
from training.networks.language_model import LanguageModel
from training.networks.recurrent import GATES, STATE_NAMES, RecurrentLayer

STATE_STEPS = 63  # h = 1 lies this many steps from h = 0
STATE_ZERO = 64  # the unsigned integer that stands for h = 0
_WEIGHT_STEPS = 127

States: TypeAlias = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """A matrix [K, N]: `values` · `scale`, one scale a column."""

    values: npt.NDArray[np.int8]  # [K, N]
    scale: npt.NDArray[np.float32]  # [N]

    @classmethod
    def of(cls, weight: npt.NDArray[np.float32]) -> "QuantizedMatrix":
        """Round `weight` [K, N] to the nearest step of its column."""
        scale = (np.abs(weight).max(axis=0) / _WEIGHT_STEPS).astype(np.float32)
        # A column of zeros, or of what single precision cannot divide into steps.
        scale[scale < np.finfo(np.float32).tiny] = 1.0
        values = np.rint(weight / scale).clip(-_WEIGHT_STEPS, _WEIGHT_STEPS)
        return cls(values.astype(np.int8), scale)


@dataclass(frozen=True, slots=True)
class QuantizedLayer:
    """One recurrent layer's products, as the graph computes them.

    `recurrent` [K, G·H] multiplies h; above the first layer of an rnn or lstm K is 2H, and it
    multiplies the layer's input and h, one after the other. A GRU's candidate takes the two apart
    (its reset gate stands between them), so there `inputs` [H, G·H] multiplies the input alone.
    """

    recurrent: QuantizedMatrix
    inputs: QuantizedMatrix | None

    @classmethod
    def of(cls, cell: str, layer: RecurrentLayer, *, first: bool) -> "QuantizedLayer":
        """The first layer reads characters: its input product is a table and not in here."""
        weight_ih, weight_hh = array(layer.weight_ih).T, array(layer.weight_hh).T
        if first:
            return cls(QuantizedMatrix.of(weight_hh), None)
        if cell == "gru":
            return cls(QuantizedMatrix.of(weight_hh), QuantizedMatrix.of(weight_ih))
        return cls(QuantizedMatrix.of(np.concatenate([weight_ih, weight_hh])), None)


def input_table(model: LanguageModel) -> npt.NDArray[np.float32]:
    """What the first layer adds for each character, [V, G·H]: its input product and its biases.

    The bias of a GRU's recurrent candidate stays out: the reset gate scales it.
    """
    layer = model.recurrent_layers[0]
    exact = array(model.embedding.weight).astype(np.float64) @ array(layer.weight_ih).T
    return (exact + input_bias(model.config.cell, layer)).astype(np.float32)


def input_bias(cell: str, layer: RecurrentLayer) -> npt.NDArray[np.float32]:
    """The biases [G·H] that no gate scales."""
    bias_hh = array(layer.bias_hh).copy()
    if cell == "gru":
        bias_hh[2 * len(bias_hh) // 3 :] = 0.0
    total: npt.NDArray[np.float32] = array(layer.bias_ih) + bias_hh
    return total


def reference_logprobs(
    model: LanguageModel, tokens: Tensor, states: Sequence[Tensor]
) -> tuple[Tensor, States]:
    """log p [B, T, V] after each of `tokens` [B, T] of the quantized model, in double precision.

    Written from the formulas and not from the graph, which is checked against it. Where a value
    lies within rounding of the middle between two steps of h, the two can take different steps.
    """
    logprobs, steps = reference_steps(model, tokens, states)
    return logprobs, steps[-1]


def reference_steps(
    model: LanguageModel, tokens: Tensor, states: Sequence[Tensor]
) -> tuple[Tensor, list[States]]:
    """The same log p, and the states before each of the tokens and after the last, [T + 1]."""
    cell = model.config.cell
    layers = model.recurrent_layers
    quantized = [QuantizedLayer.of(cell, x, first=i == 0) for i, x in enumerate(layers)]
    table = torch.from_numpy(input_table(model)).double()
    per_layer = len(STATE_NAMES[cell])
    current = [state.double() for state in states]
    outputs, steps = [], [tuple(current)]
    for t in range(tokens.shape[1]):
        x = table[tokens[:, t]]  # [B, G·H]
        for i, (layer, matrices) in enumerate(zip(layers, quantized, strict=True)):
            own = slice(i * per_layer, (i + 1) * per_layer)
            if i:
                x = _input_sums(cell, layer, matrices, x, current[own][0])
            current[own] = _cell(cell, layer, matrices, x, current[own], first=i == 0)
            x = current[own][0]
        outputs.append(x)
        steps.append(tuple(current))
    hidden = torch.stack(outputs, dim=1)  # [B, T, H]
    logits = hidden @ model.output.weight.double().T + model.output.bias.double()
    return torch.log_softmax(logits, dim=-1).detach(), steps


def _input_sums(
    cell: str, layer: RecurrentLayer, matrices: QuantizedLayer, x: Tensor, h: Tensor
) -> Tensor:
    """Sums [B, G·H] above the first layer: with the recurrent product, but for the GRU."""
    bias = torch.from_numpy(input_bias(cell, layer)).double()
    if matrices.inputs is not None:
        return quantized_product(x, matrices.inputs) + bias
    return quantized_product(torch.cat([x, h], dim=1), matrices.recurrent) + bias


def _cell(
    cell: str,
    layer: RecurrentLayer,
    matrices: QuantizedLayer,
    x: Tensor,
    states: Sequence[Tensor],
    *,
    first: bool,
) -> list[Tensor]:
    h = states[0]
    gates = GATES[cell]
    if cell == "gru":
        r_x, z_x, n_x = x.chunk(gates, dim=1)
        r_h, z_h, n_h = quantized_product(h, matrices.recurrent).chunk(gates, dim=1)
        n_bias = layer.bias_hh.detach().double().chunk(gates)[2]
        r, z = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
        n = torch.tanh(n_x + r * (n_h + n_bias))
        return [n + z * (h - n)]
    total = x + quantized_product(h, matrices.recurrent) if first else x
    if cell == "rnn":
        return [torch.tanh(total)]
    i, f, g, o = total.chunk(gates, dim=1)
    c = torch.sigmoid(f) * states[1] + torch.sigmoid(i) * torch.tanh(g)
    return [torch.sigmoid(o) * torch.tanh(c), c]


def quantized_product(h: Tensor, matrix: QuantizedMatrix) -> Tensor:
    """`h` [B, K] in steps times the matrix: an exact sum of integers, then the scales."""
    steps = torch.round(h * STATE_STEPS)
    sums = steps @ torch.from_numpy(matrix.values).double()
    return sums * (torch.from_numpy(matrix.scale).double() / STATE_STEPS)
