"""Mutated graphs: a wrong gate order, a missing bias, a weight off by one percent, and so on.

Each mutation changes what the graph computes. The export's checks must reject all of them.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

Array: TypeAlias = npt.NDArray[Any]
_GATES = {"LSTM": 4, "GRU": 3}
_WEIGHTS = ("weight", "bias", "table", "embedding")


def mutations(graph: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield a description of each mutation and the mutated graph."""
    proto = onnx.load_model_from_string(graph)
    for constant in _weights(proto):
        values = numpy_helper.to_array(constant)
        yield f"{constant.name} off by a hundredth", _with(proto, constant.name, values * 1.01)
        if "bias" in constant.name:
            yield f"{constant.name} left out", _with(proto, constant.name, np.zeros_like(values))
        if constant.name.startswith("weight_hh"):
            yield f"{constant.name} transposed", _with(proto, constant.name, _transposed(values))
        if values.ndim > 1 and values.shape[-1] > 1:
            swapped = np.concatenate(
                [values[..., :-2], values[..., -1:], values[..., -2:-1]], axis=values.ndim - 1
            )
            if not np.array_equal(swapped, values):
                yield f"{constant.name} with columns swapped", _with(proto, constant.name, swapped)
    yield from _wrong_gates(graph)
    yield from _wrong_attributes(graph)
    yield from _states_kept(graph)


def _weights(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    """The weights that are not all zero, as an untrained bias is."""
    return [
        x
        for x in proto.graph.initializer
        if x.data_type == onnx.TensorProto.FLOAT
        and any(part in x.name for part in _WEIGHTS)
        and numpy_helper.to_array(x).any()
    ]


def _changed(graph: bytes, change: Callable[[onnx.GraphProto], None]) -> bytes:
    proto = onnx.load_model_from_string(graph)
    change(proto.graph)
    data: bytes = proto.SerializeToString()
    return data


def _with(proto: onnx.ModelProto, name: str, values: Array) -> bytes:
    """The graph with one constant replaced."""
    (constant,) = (x for x in proto.graph.initializer if x.name == name)
    before = onnx.TensorProto()
    before.CopyFrom(constant)
    constant.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))
    data: bytes = proto.SerializeToString()
    constant.CopyFrom(before)
    return data


def _transposed(weight: Array) -> Array:
    """A recurrent matrix [.., G·H, H] or [.., H, G·H] with the block of every gate transposed."""
    axis = weight.ndim - 2 + int(weight.shape[-1] > weight.shape[-2])
    size = min(weight.shape[-2:])
    blocks = np.split(weight, weight.shape[axis] // size, axis)
    return np.concatenate([x.swapaxes(-1, -2) for x in blocks], axis)


def _wrong_gates(graph: bytes) -> Iterator[tuple[str, bytes]]:
    """Swap the first two gates of an operator."""
    nodes = onnx.load_model_from_string(graph).graph.node
    for node in nodes:
        if node.op_type in _GATES:
            what = f"gates of {node.output[0]} in a wrong order"
            yield what, _changed(graph, partial(_swap_gates, node=node))


def _swap_gates(inner: onnx.GraphProto, node: onnx.NodeProto) -> None:
    gates = _GATES[node.op_type]
    for name in node.input[1:4]:
        (constant,) = (x for x in inner.initializer if x.name == name)
        values = numpy_helper.to_array(constant)
        swapped: list[Array] = []
        # A bias has the values of both products, one after the other.
        for half in np.split(values, 2, 1) if values.ndim == 2 else [values]:
            first, second, *others = np.split(half, gates, 1)
            swapped += [second, first, *others]
        values = np.ascontiguousarray(np.concatenate(swapped, 1))
        constant.CopyFrom(numpy_helper.from_array(values, name))


def _wrong_attributes(graph: bytes) -> Iterator[tuple[str, bytes]]:
    """Apply the reset gate of a GRU before the product."""

    def turn(inner: onnx.GraphProto) -> None:
        for node in inner.node:
            for attribute in node.attribute:
                if attribute.name == "linear_before_reset":
                    attribute.i = 0

    changed = _changed(graph, turn)
    if changed != _changed(graph, lambda _: None):
        yield "linear_before_reset left out", changed


def _states_kept(graph: bytes) -> Iterator[tuple[str, bytes]]:
    """Return a state unchanged."""
    proto = onnx.load_model_from_string(graph)
    inputs = {x.name for x in proto.graph.input}
    for name in (x.name.removesuffix("_out") for x in proto.graph.output):
        if name not in inputs:
            continue

        def keep(inner: onnx.GraphProto, name: str = name) -> None:
            for node in inner.node:
                for i, output in enumerate(node.output):
                    if output == f"{name}_out":
                        node.output[i] = f"{name}_lost"
                for i, read in enumerate(node.input):
                    if read == f"{name}_out":
                        node.input[i] = f"{name}_lost"
            inner.node.append(onnx.helper.make_node("Identity", [name], [f"{name}_out"]))

        yield f"{name} handed back as it came", _changed(graph, keep)
