"""ONNX nodes and constants under construction."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

Float32Array: TypeAlias = npt.NDArray[np.float32]
ValueInfo: TypeAlias = onnx.ValueInfoProto

OPSET = 18
IR_VERSION = 9
# ONNX orders the gates i o f c and z r h, torch i f g o and r z n.
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

    def rename(self, names: Mapping[str, str]) -> None:
        """Rename tensors among the inputs and outputs of all nodes."""
        for node in self.nodes:
            for places in (node.input, node.output):
                renamed = [names.get(name, name) for name in places]
                del places[:]
                places.extend(renamed)

    def append(self, other: "GraphBuilder", prefix: str, shared: Collection[str]) -> None:
        """Append another's nodes and constants, whose names get `prefix` unless `shared` has them.

        A node's bodies see the names around them, so theirs change in the same way.
        """

        def renamed(name: str) -> str:
            return name if not name or name in shared else prefix + name

        def rename(nodes: Sequence[onnx.NodeProto]) -> None:
            for node in nodes:
                for places in (node.input, node.output):
                    names = [renamed(name) for name in places]
                    del places[:]
                    places.extend(names)
                for body in (x.g for x in node.attribute if x.HasField("g")):
                    rename(body.node)
                    for value in (*body.input, *body.output):
                        value.name = renamed(value.name)

        rename(other.nodes)
        for constant in other.constants:
            constant.name = renamed(constant.name)
        self.nodes.extend(other.nodes)
        self.constants.extend(other.constants)


def add_axes(graph: GraphBuilder) -> None:
    """The constants `axis_0` to `axis_2`."""
    for axis in range(3):
        graph.constant(f"axis_{axis}", np.array([axis], np.int64))


def float_info(name: str, shape: Sequence[int | str]) -> ValueInfo:
    """An input or output in single precision."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def array(parameter: Tensor) -> Float32Array:
    """A parameter as a numpy array."""
    return parameter.detach().cpu().numpy()


def reordered_gates(cell: str, stacked: Float32Array) -> Float32Array:
    """The gates of a stacked parameter [G·H, …] in the order that ONNX's operators expect."""
    gates = np.split(stacked, len(_ONNX_GATES[cell]))
    return np.concatenate([gates[i] for i in _ONNX_GATES[cell]])


def torch_gates(cell: str, stacked: Float32Array) -> Float32Array:
    """The inverse of `reordered_gates`."""
    order = _ONNX_GATES[cell]
    gates = np.split(stacked, len(order))
    return np.concatenate([gates[order.index(i)] for i in range(len(order))])


def finish_model(
    graph: GraphBuilder,
    inputs: Sequence[ValueInfo],
    outputs: Sequence[ValueInfo],
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
    """The constants that nodes use; onnxruntime warns about any others."""
    taken = {name for node in graph.nodes for name in node.input}
    for node in graph.nodes:
        for attribute in node.attribute:
            taken.update(name for inner in attribute.g.node for name in inner.input)
    return [constant for constant in graph.constants if constant.name in taken]
