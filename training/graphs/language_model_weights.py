"""A language model's weights, read back from its graph in fp32, bit for bit.

V vocabulary, E embedding, H hidden, G gates of the cell.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from training.config import LanguageModelNetworkConfig
from training.graphs.builder import torch_gates


def weights_of(graph: bytes, config: LanguageModelNetworkConfig) -> Iterator[tuple[str, Tensor]]:
    """The parameters of an LSTM or GRU, as PyTorch names them (`language_model` wrote the graph).

    Not of a tanh RNN, whose graph holds products of its weights.
    """
    proto = onnx.load_model_from_string(graph).graph
    constants = {x.name: numpy_helper.to_array(x) for x in proto.initializer}
    yield "embedding.weight", _tensor(constants["embedding"])  # [V, E]
    yield "output.weight", _tensor(constants["output_weight"].T)  # [V, H]
    yield "output.bias", _tensor(constants["output_bias"])  # [V]
    for i in range(config.num_layers):
        for part in ("weight_ih", "weight_hh"):
            stacked = constants[f"{part}{i}"][0]  # [G H, E or H]
            yield f"layers.{i}.{part}", _tensor(torch_gates(config.cell, stacked))
        biases = np.split(constants[f"bias{i}"][0], 2)  # [G H] each
        for part, bias in zip(("bias_ih", "bias_hh"), biases, strict=True):
            yield f"layers.{i}.{part}", _tensor(torch_gates(config.cell, bias))


def _tensor(value: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(np.array(value, np.float32))
