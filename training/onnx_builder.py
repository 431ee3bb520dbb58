"""ONNX nodes and constants under construction."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper
from torch import Tensor

FloatArray: TypeAlias = npt.NDArray[np.float32]


class GraphBuilder:
    """Nodes and constants of one graph, or of one body inside it."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, operator: str, inputs: Sequence[str], *outputs: str, **attributes: Any) -> str:
        """Append a node and return its first output's name."""
        self.nodes.append(helper.make_node(operator, inputs, outputs, **attributes))
        return outputs[0]

    def constant(self, name: str, value: npt.NDArray[np.generic]) -> str:
        """Append an initializer and return its name."""
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name


def array(parameter: Tensor) -> FloatArray:
    """A parameter as numpy sees it."""
    return parameter.detach().cpu().numpy()
