"""Nodes that several graphs use.

N sources, T positions.
"""

import numpy as np
from onnx import TensorProto, helper

from training.graphs.builder import Float32Array, GraphBuilder

ZERO = helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0])  # for `add_filled`


def affine(graph: GraphBuilder, name: str, x: str, weight: Float32Array, bias: Float32Array) -> str:
    """`x` [.., .., K] times `weight` [K, n], plus `bias` [n]."""
    graph.constant(f"{name}_weight", weight)
    graph.constant(f"{name}_bias", bias)
    graph.add("MatMul", [x, f"{name}_weight"], f"{name}_product")
    return graph.add("Add", [f"{name}_product", f"{name}_bias"], f"{name}_sum")


def add_inside(graph: GraphBuilder, x: str, lengths: str, name: str) -> str:
    """Which positions of `x` [T, N, …] lie inside the `lengths` [N]: booleans [T, N]."""
    graph.constant(f"{name}_zero", np.array(0, np.int64))
    graph.constant(f"{name}_one", np.array(1, np.int64))
    graph.add("Shape", [x], f"{name}_shape", start=0, end=1)
    graph.add("Squeeze", [f"{name}_shape", "axis_0"], f"{name}_time")
    graph.add("Range", [f"{name}_zero", f"{name}_time", f"{name}_one"], f"{name}_positions")
    graph.add("Unsqueeze", [f"{name}_positions", "axis_1"], f"{name}_column")  # [T, 1]
    return graph.add("Less", [f"{name}_column", lengths], f"{name}_inside")


def add_filled(graph: GraphBuilder, x: str, name: str, size: int, value: TensorProto) -> str:
    """A tensor [N, size] of one number, N from `x` [M, N, …]."""
    graph.add("Shape", [x], f"{name}_rows", start=1, end=2)
    graph.constant(f"{name}_size", np.array([size], np.int64))
    graph.add("Concat", [f"{name}_rows", f"{name}_size"], f"{name}_shape", axis=0)
    return graph.add("ConstantOfShape", [f"{name}_shape"], name, value=value)
