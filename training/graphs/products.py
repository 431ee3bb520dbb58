"""Products of bounded values with weights, in a graph's precision.

In eight bits they have the fixed scales of `quantization`: the states of the cells and the readout
lie in [-1, 1], whatever the input. Embeddings have no bound, so the weights that multiply them are
only stored in eight bits, and the products are in single precision.
"""

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto, helper

from service.bundle.manifest import Precision
from training.graphs.builder import Float32Array, GraphBuilder
from training.graphs.quantization import STATE_STEPS, STATE_ZERO, QuantizedMatrix


class Products:
    """Adds products to `graph`, which has the constants `axis_0` to `axis_2`.

    They multiply operands: seven-bit steps in an eight-bit graph, otherwise the tensors themselves.
    """

    def __init__(self, graph: GraphBuilder, precision: Precision) -> None:
        self._graph = graph
        self._int8 = precision == "int8"
        element, zero = (TensorProto.UINT8, STATE_ZERO) if self._int8 else (TensorProto.FLOAT, 0.0)
        self.zero = helper.make_tensor("zero", element, [1], [zero])  # of an operand
        # No operand is less, and none is more.
        least, most = (0, 255) if self._int8 else (-1.0, 1.0)
        self.least = helper.make_tensor("least", element, [1], [least])
        self.most = helper.make_tensor("most", element, [1], [most])
        if self._int8:
            add_state_steps(graph)

    def operand(self, x: str, body: GraphBuilder | None = None) -> str:
        """The operand of `x`, whose values lie in [-1, 1].

        Its node goes to `body`, the body of a Scan, if that is given.
        """
        nodes = self._graph if body is None else body
        return int8_steps(nodes, x, f"{x}_steps") if self._int8 else x

    def beside(self, operands: Sequence[str], name: str) -> str:
        """Operands [.., n] joined along the last axis."""
        if len(operands) == 1:
            return operands[0]
        return self._graph.add("Concat", list(operands), name, axis=-1)

    def add_numbers(self, operand: str, name: str) -> str:
        """The numbers that an operand stands for."""
        if not self._int8:
            return operand
        return self._graph.add("DequantizeLinear", [operand, "state_scale", "state_zero"], name)

    def add_rows(
        self, name: str, operand: str, weight: Float32Array, body: GraphBuilder | None = None
    ) -> str:
        """The product [B, n] of `operand` [B, K] with `weight` [K, n]; `body` as above."""
        nodes = self._graph if body is None else body
        if self._int8:
            return self._add_int8(name, operand, weight, nodes)
        self._graph.constant(f"{name}_weight", weight)
        # In three dimensions: a product of two matrices and a bias becomes a Gemm, whose kernel
        # depends on the number of rows.
        nodes.add("Unsqueeze", [operand, "axis_1"], f"{name}_rows")
        nodes.add("MatMul", [f"{name}_rows", f"{name}_weight"], f"{name}_products")
        return nodes.add("Squeeze", [f"{name}_products", "axis_1"], f"{name}_product")

    def add_positions(self, name: str, operand: str, weight: Float32Array) -> str:
        """The product [.., .., n] of `operand` [.., .., K] with `weight` [K, n]."""
        if self._int8:
            return self._add_int8(name, operand, weight, self._graph)
        self._graph.constant(f"{name}_weight", weight)
        return self._graph.add("MatMul", [operand, f"{name}_weight"], f"{name}_product")

    def add_stored(self, name: str, weight: Float32Array) -> str:
        """`weight` [K, n] in single precision; an eight-bit graph stores steps and column scales.

        onnxruntime multiplies them out once, when it loads the graph.
        """
        if not self._int8:
            return self._graph.constant(name, weight)
        matrix = QuantizedMatrix.of(weight)
        self._graph.constant(f"{name}_stored", matrix.values)
        self._graph.constant(f"{name}_scale", matrix.scale)
        self._graph.add("Cast", [f"{name}_stored"], f"{name}_steps", to=TensorProto.FLOAT)
        return self._graph.add("Mul", [f"{name}_steps", f"{name}_scale"], name)

    def _add_int8(self, name: str, steps: str, weight: Float32Array, nodes: GraphBuilder) -> str:
        add_int8_matrix(self._graph, name, QuantizedMatrix.of(weight))
        return int8_product(nodes, steps, name)


def add_state_steps(graph: GraphBuilder) -> None:
    """The constants that turn values in [-1, 1] into seven bits."""
    graph.constant("state_scale", np.array(1.0 / STATE_STEPS, np.float32))
    graph.constant("state_zero", np.array(STATE_ZERO, np.uint8))
    # The same scale again, in a form that onnxruntime does not fold into the weights' scales: it
    # fuses a product into one operator only if the two scales are separate.
    graph.constant("one_step", np.array(1, np.int8))
    graph.add("DequantizeLinear", ["one_step", "state_scale"], "step_scale")


def int8_steps(body: GraphBuilder, h: str, output: str) -> str:
    """Seven bits of h: round(63 h) + 64."""
    return body.add("QuantizeLinear", [h, "state_scale", "state_zero"], output)


def int8_product(body: GraphBuilder, steps: str, name: str) -> str:
    """An exact integer product, then the scales in single precision.

    onnxruntime fuses the four operators into one, with a bias that is added next.
    """
    inputs = [steps, f"{name}_weight", "state_zero"]
    sums = body.add("MatMulInteger", inputs, f"{name}_integers")
    cast = body.add("Cast", [sums], f"{name}_floats", to=TensorProto.FLOAT)
    scale = body.add("Mul", ["step_scale", f"{name}_scale"], f"{name}_step_scale")
    return body.add("Mul", [cast, scale], f"{name}_product")


def add_int8_matrix(graph: GraphBuilder, name: str, matrix: QuantizedMatrix) -> None:
    """The constants for a product of seven-bit steps with a matrix."""
    graph.constant(f"{name}_weight", matrix.values)
    graph.constant(f"{name}_scale", matrix.scale)
