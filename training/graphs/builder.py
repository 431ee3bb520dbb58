"""ONNX nodes and constants under construction."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper
from torch import Tensor

Float32Array: TypeAlias = npt.NDArray[np.float32]

OPSET = 18
IR_VERSION = 9
# ONNX orders the gates otherwise than torch: i o f c for i f g o, and z r h for r z n.
_ONNX_GATES = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}


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


def array(parameter: Tensor) -> Float32Array:
    """A parameter as numpy sees it."""
    return parameter.detach().cpu().numpy()


def reordered_gates(cell: str, stacked: Float32Array) -> Float32Array:
    """The gates of a stacked parameter [G·H, …] in the order of ONNX's operators."""
    gates = np.split(stacked, len(_ONNX_GATES[cell]))
    return np.concatenate([gates[i] for i in _ONNX_GATES[cell]])


def torch_gates(cell: str, stacked: Float32Array) -> Float32Array:
    """What `reordered_gates` was given."""
    order = _ONNX_GATES[cell]
    gates = np.split(stacked, len(order))
    return np.concatenate([gates[order.index(i)] for i in range(len(order))])


def finish_model(
    graph: GraphBuilder,
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
) -> bytes:
    """The graph as a model's bytes, checked by ONNX's own checker."""
    proto = helper.make_model(
        helper.make_graph(graph.nodes, "unroll", inputs, outputs, _used(graph)),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="unroll",
    )
    onnx.checker.check_model(proto, full_check=True)
    data: bytes = proto.SerializeToString()
    return data


def _used(graph: GraphBuilder) -> list[onnx.TensorProto]:
    """The constants that some node takes: onnxruntime warns of others."""
    taken = {name for node in graph.nodes for name in node.input}
    for node in graph.nodes:
        for attribute in node.attribute:
            taken.update(name for inner in attribute.g.node for name in inner.input)
    return [constant for constant in graph.constants if constant.name in taken]
