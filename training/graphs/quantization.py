"""Eight-bit weights and seven-bit states, with scales that do not depend on the input.

B batch, T time, V vocabulary, H hidden, G gates of the cell (rnn 1, gru 3, lstm 4), K inputs.

|h| <= 1 for the tanh RNN, the GRU and the LSTM, whatever they read. So h becomes round(63 h) + 64,
an integer from 1 to 127, whose scale is a constant: rows of a batch cannot affect each other.
Weights get one scale an output channel, max |w| / 127. The products are sums of integers, which are
exact in any order, and pairs of them (at most 2 · 127 · 127) fit in 16 bits: CPUs without VNNI
instructions, which add such pairs with saturation, give the same sums as those with them.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from training.graphs.builder import array
from training.networks.recurrent import ForwardLayers, RecurrentLayer

STATE_STEPS = 63  # h = 1 lies this many steps from h = 0
STATE_ZERO = 64  # the unsigned integer that stands for h = 0
_WEIGHT_STEPS = 127


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """A matrix [K, N]: `values` · `scale`, one scale a column."""

    values: npt.NDArray[np.int8]  # [K, N]
    scale: npt.NDArray[np.float32]  # [N]

    @classmethod
    def of(cls, weight: npt.NDArray[np.float32]) -> "QuantizedMatrix":
        """Round `weight` [K, N] to the nearest step of its column."""
        scale = (np.abs(weight).max(axis=0) / _WEIGHT_STEPS).astype(np.float32)
        # A column of zeros, or of numbers too small for single precision to divide.
        scale[scale < np.finfo(np.float32).tiny] = 1.0
        values = np.rint(weight / scale).clip(-_WEIGHT_STEPS, _WEIGHT_STEPS)
        return cls(values.astype(np.int8), scale)


@dataclass(frozen=True, slots=True)
class QuantizedLayer:
    """One recurrent layer's products, as the graph computes them.

    `recurrent` [K, G·H] multiplies h; above the first layer of an rnn or lstm K is 2H, and it
    multiplies the layer's input and h, joined. A GRU's candidate needs the two separately
    (its reset gate comes between them), so there `inputs` [H, G·H] multiplies the input alone.
    """

    recurrent: QuantizedMatrix
    inputs: QuantizedMatrix | None

    @classmethod
    def of(cls, cell: str, layer: RecurrentLayer, *, first: bool) -> "QuantizedLayer":
        """The first layer reads tokens: its input product is a table, and not part of this."""
        weight_ih, weight_hh = array(layer.weight_ih).T, array(layer.weight_hh).T
        if first:
            return cls(QuantizedMatrix.of(weight_hh), None)
        if cell == "gru":
            return cls(QuantizedMatrix.of(weight_hh), QuantizedMatrix.of(weight_ih))
        return cls(QuantizedMatrix.of(np.concatenate([weight_ih, weight_hh])), None)


def input_table(model: ForwardLayers) -> npt.NDArray[np.float32]:
    """The first layer's sums [V, G·H] for each token: its input product and its biases.

    The bias of a GRU's recurrent candidate is left out: the reset gate scales it.
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


def candidate_bias(layer: RecurrentLayer) -> npt.NDArray[np.float32]:
    """The bias [H] of a GRU's recurrent candidate, which the reset gate scales."""
    return np.split(array(layer.bias_hh), 3)[2]


def quantized_product(h: Tensor, matrix: QuantizedMatrix) -> Tensor:
    """`h` [B, K] in steps times the matrix: an exact sum of integers, then the scales."""
    steps = torch.round(h * STATE_STEPS)
    sums = steps @ torch.from_numpy(matrix.values).double()
    return sums * (torch.from_numpy(matrix.scale).double() / STATE_STEPS)
