"""One bidirectional layer of an encoder: ONNX's operator, or a Scan of small operators.

N sources, M memory positions, H hidden, D both directions' hidden, G gates of the cell.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import TensorProto, helper

from training.graphs.builder import (
    Float32Array,
    GraphBuilder,
    ValueInfo,
    array,
    float_info,
    reordered_gates,
)
from training.graphs.cells import add_cell
from training.graphs.nodes import ZERO, add_filled
from training.graphs.products import Products
from training.graphs.quantization import candidate_bias
from training.networks.encoder import BidirectionalLayer
from training.networks.recurrent import RecurrentLayer

# The states that a step takes from the previous one, besides the operand of h.
_SCANNED_STATES = {"rnn": (), "gru": ("h",), "lstm": ("c",)}


def add_operator_layer(
    graph: GraphBuilder, i: int, layer: BidirectionalLayer, x: str, weights: list[Float32Array]
) -> tuple[str, list[str]]:
    """ONNX's bidirectional LSTM or GRU: outputs [M, N, D], and each direction's last h [N, D / 2].

    Each direction's `weights` [G·H, …] multiply `x` [M, N, …].
    """
    both = (layer.forwards, layer.backwards)

    def stacked(parts: Sequence[Sequence[Float32Array]]) -> Float32Array:
        return np.stack(
            [np.concatenate([reordered_gates(layer.cell, x) for x in part]) for part in parts]
        )

    parameters = [
        graph.constant(f"weight_ih{i}", stacked([[weight] for weight in weights])),
        graph.constant(f"weight_hh{i}", stacked([[array(x.weight_hh)] for x in both])),
        graph.constant(f"bias{i}", stacked([[array(x.bias_ih), array(x.bias_hh)] for x in both])),
    ]
    graph.add(
        layer.cell.upper(),
        [x, *parameters, "memory_lengths"],
        f"layer{i}",
        f"layer{i}_last",
        direction="bidirectional",
        hidden_size=layer.forwards.weight_hh.shape[1],
        **({"linear_before_reset": 1} if layer.cell == "gru" else {}),
    )  # [M, 2, N, H] and [2, N, H]
    graph.add("Transpose", [f"layer{i}"], f"layer{i}_rows", perm=[0, 2, 1, 3])
    graph.constant(f"layer{i}_shape", np.array([0, 0, -1], np.int64))
    x = graph.add("Reshape", [f"layer{i}_rows", f"layer{i}_shape"], f"outputs{i}")  # [M, N, D]
    last = [f"forward{i}_last", f"backward{i}_last"]
    graph.add("Split", [f"layer{i}_last"], *last, axis=0, num_outputs=2)
    squeezed = [graph.add("Squeeze", [name, "axis_0"], f"{name}_state") for name in last]
    return x, squeezed


def add_scanned_layer(
    graph: GraphBuilder,
    products: Products,
    i: int,
    layer: BidirectionalLayer,
    *,
    inputs: Sequence[str],
    inside: str,
) -> tuple[str, list[str]]:
    """Both directions in one Scan: operands of the outputs [M, N, D] and of the last h.

    The backward direction begins at the batch's last position; its states stay zero until a row's
    own last position. The forward direction's h no longer changes after a row's last position; its
    other states do, but nobody reads them.
    """
    hidden = layer.forwards.weight_hh.shape[1]
    graph.add("Unsqueeze", [inside, "axis_2"], f"inside{i}")  # [M, N, 1]
    operand = add_filled(graph, inputs[0], f"operand{i}", hidden, products.zero)
    state = add_filled(graph, inputs[0], f"state{i}", hidden, ZERO)
    scan = _Scan(GraphBuilder(), hidden, operand, state)
    for own, direction in enumerate((layer.forwards, layer.backwards)):
        # Cells are numbered by layer; here each direction counts as one.
        k = 2 * i + own
        h = _add_scanned_cell(graph, products, scan.body, k, direction)
        scan.carry_operand(k, products.operand(h, scan.body), products.zero.data_type)
        for name in _SCANNED_STATES[layer.cell]:
            scan.carry_state(k, f"{name}{k}", waits=direction is layer.backwards)
        scan.sums.append(float_info(f"input_sums{k}", ["N", direction.weight_hh.shape[0]]))
    insides = [
        helper.make_tensor_value_info(f"inside{k}", TensorProto.BOOL, ["N", 1])
        for k in (2 * i, 2 * i + 1)
    ]
    graph.add(
        "Scan",
        [*scan.first, *inputs, f"inside{i}", f"inside{i}"],
        *(f"{value.name}_last" for value in scan.after),
        f"forward{i}_outputs",
        f"backward{i}_outputs",
        num_scan_inputs=4,
        scan_input_directions=[0, 1, 0, 1],
        scan_output_directions=[0, 1],
        body=helper.make_graph(
            scan.body.nodes,
            "step",
            [*scan.before, *scan.sums, *insides],
            [*scan.after, *scan.outputs],
        ),
    )
    last = [f"operand{k}_next_last" for k in (2 * i, 2 * i + 1)]
    both = [f"forward{i}_outputs", f"backward{i}_outputs"]
    return products.beside(both, f"outputs{i}"), last


def _add_scanned_cell(
    graph: GraphBuilder, products: Products, body: GraphBuilder, k: int, direction: RecurrentLayer
) -> str:
    """One direction's step in the Scan's body; returns its new h [N, H]."""
    weight = array(direction.weight_hh).T
    product = products.add_rows(f"recurrent{k}", f"operand{k}_before", weight, body)
    if direction.cell == "gru":
        graph.constant(f"candidate_bias{k}", candidate_bias(direction))
        return add_cell(body, direction.cell, k, f"input_sums{k}", product)
    total = body.add("Add", [product, f"input_sums{k}"], f"total{k}")
    return add_cell(body, direction.cell, k, total)


@dataclass(frozen=True, slots=True)
class _Scan:
    """A Scan over both directions under construction: its body, its inputs and its outputs."""

    body: GraphBuilder
    hidden_size: int
    first_operand: str  # the first value of the operand of h
    first_state: str  # the first value of any other state
    first: list[str] = field(default_factory=list)
    before: list[ValueInfo] = field(default_factory=list)
    after: list[ValueInfo] = field(default_factory=list)
    sums: list[ValueInfo] = field(default_factory=list)  # of a direction's input, at one position
    outputs: list[ValueInfo] = field(default_factory=list)

    def carry_operand(self, k: int, new: str, element: int) -> None:
        """Carry the operand of h, which changes only inside the source, and output it."""
        choice = [f"inside{k}", new, f"operand{k}_before"]
        self.body.add("Where", choice, f"operand{k}_next")
        self.body.add("Identity", [f"operand{k}_next"], f"output{k}")
        self.first.append(self.first_operand)
        self.before.append(self._vector(f"operand{k}_before", element))
        self.after.append(self._vector(f"operand{k}_next", element))
        self.outputs.append(self._vector(f"output{k}", element))

    def carry_state(self, k: int, name: str, *, waits: bool) -> None:
        """Carry another state; if it `waits`, it changes only inside the source."""
        new = f"{name}_new"
        if waits:
            choice = [f"inside{k}", new, f"{name}_before"]
            new = self.body.add("Where", choice, f"{name}_next")
        self.first.append(self.first_state)
        self.before.append(self._vector(f"{name}_before"))
        self.after.append(self._vector(new))

    def _vector(self, name: str, element: int = TensorProto.FLOAT) -> ValueInfo:
        return helper.make_tensor_value_info(name, element, ["N", self.hidden_size])
