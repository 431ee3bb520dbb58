"""One bidirectional layer of an encoder: ONNX's operator, or a Scan of small operators.

N sources, M memory positions, H hidden, D both directions' hidden, G gates of the cell.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from training.graphs.builder import (
    Float32Array,
    GraphBuilder,
    ValueInfo,
    array,
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


def add_maximum(graph: GraphBuilder, x: str, inside: str) -> str:
    """Each feature's maximum [N, D] of `x` [M, N, D], in [-1, 1], over what is `inside` [M, N]."""
    graph.constant("far_below", np.array(-4.0, np.float32))
    graph.constant("as_it_is", np.array(0.0, np.float32))
    graph.add("Where", [inside, "as_it_is", "far_below"], "drop")
    graph.add("Unsqueeze", ["drop", "axis_2"], "drop_column")  # [M, N, 1]
    graph.add("Add", [x, "drop_column"], "own_outputs")
    # ReduceMax takes three times as long.
    graph.add("Transpose", ["own_outputs"], "features_by_source", perm=[1, 2, 0])  # [N, D, M]
    graph.add("GlobalMaxPool", ["features_by_source"], "maxima")
    return graph.add("Squeeze", ["maxima", "axis_2"], "pooled")


def add_scanned_layer(
    graph: GraphBuilder,
    products: Products,
    i: int,
    layer: BidirectionalLayer,
    *,
    inputs: Sequence[str],
    tables: Sequence[str],
    inside: str,
    pooled: bool = False,
) -> tuple[str, list[str]]:
    """Both directions in one Scan: operands of the outputs [M, N, D] and of the last h.

    The `inputs` of the directions are sums [M, N, G·H] of what the layer reads; with `tables` of
    sums [V, G·H], they are the tokens [M, N], which a step looks up: that saves writing all of them
    to memory. If `pooled`, the outputs are their maximum over a source's own positions, [N, D].

    The backward direction begins at the batch's last position; its states stay zero until a row's
    own last position. With tables, the zeros that they have for pads see to that, except in a GRU,
    whose candidate has a bias of its own. The forward direction's h no longer changes after a row's
    last position, unless it is pooled; its other states do, but nobody reads them.
    """
    hidden = layer.forwards.weight_hh.shape[1]
    rests = bool(tables) and layer.cell != "gru"
    graph.add("Unsqueeze", [inside, "axis_2"], f"inside{i}")  # [M, N, 1]
    operand = add_filled(graph, inputs[0], f"operand{i}", hidden, products.zero)
    state = add_filled(graph, inputs[0], f"state{i}", hidden, ZERO)
    least = ""
    if pooled:
        least = add_filled(graph, inputs[0], f"least{i}", hidden, products.least)
        for name in ("least", "most"):
            graph.constant(name, numpy_helper.to_array(getattr(products, name)))
        graph.add("Where", [f"inside{i}", "most", "least"], f"bound{i}")
    scan, last = _Scan(GraphBuilder(), hidden, operand, state), []
    for k, direction in zip((2 * i, 2 * i + 1), (layer.forwards, layer.backwards), strict=True):
        # Cells are numbered by layer; here each direction counts as one.
        is_backward = direction is layer.backwards
        table = tables[k - 2 * i] if tables else ""
        scan.read_sums(k, inputs[k - 2 * i], direction.weight_hh.shape[0], table)
        h = _add_scanned_cell(graph, products, scan.body, k, direction)
        new = products.operand(h, scan.body)
        waits = not rests if is_backward else not pooled
        if waits:
            scan.read(k, f"inside{k}", f"inside{i}", TensorProto.BOOL, ["N", 1])
        h = scan.carry_operand(k, new, products.zero.data_type, waits=waits)
        last.append(f"{h}_last")
        if pooled:
            element = products.zero.data_type
            scan.read(k, f"bound{k}", f"bound{i}", element, ["N", 1])
            scan.carry_maximum(k, new, least, element)
        else:
            scan.add_output(k, h, products.zero.data_type)
        for name in _SCANNED_STATES[layer.cell]:
            scan.carry_state(k, f"{name}{k}", waits=waits and is_backward)
    _add_scan(graph, scan, i)
    both = [f"forward{i}_outputs", f"backward{i}_outputs"]
    if pooled:
        both = [f"maximum{k}_next_last" for k in (2 * i, 2 * i + 1)]
    return products.beside(both, f"outputs{i}"), last


def _add_scan(graph: GraphBuilder, scan: "_Scan", i: int) -> None:
    """Add the Scan; each state after the last position is called `<name>_last`."""
    outputs = [f"forward{i}_outputs", f"backward{i}_outputs"] if scan.outputs else []
    graph.add(
        "Scan",
        [*scan.first, *scan.sequences],
        *(f"{value.name}_last" for value in scan.after),
        *outputs,
        num_scan_inputs=len(scan.sequences),
        scan_input_directions=scan.directions,
        **({"scan_output_directions": [0, 1]} if outputs else {}),
        body=helper.make_graph(
            scan.body.nodes,
            "step",
            [*scan.before, *scan.inputs],
            [*scan.after, *scan.outputs],
        ),
    )


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
    sequences: list[str] = field(default_factory=list)  # what it reads position by position
    directions: list[int] = field(default_factory=list)  # and from which end: 1 is the last
    inputs: list[ValueInfo] = field(default_factory=list)  # of these, one position
    outputs: list[ValueInfo] = field(default_factory=list)

    def read(
        self, k: int, name: str, sequence: str, element: int, shape: Sequence[int | str]
    ) -> None:
        """Read a sequence [M, …] position by position, from the end that cell k begins at."""
        self.sequences.append(sequence)
        self.directions.append(k % 2)
        self.inputs.append(helper.make_tensor_value_info(name, element, shape))

    def read_sums(self, k: int, sequence: str, size: int, table: str) -> None:
        """The sums of what a direction reads, [N, size]: given, or looked up in the table."""
        if not table:
            self.read(k, f"input_sums{k}", sequence, TensorProto.FLOAT, ["N", size])
            return
        self.body.add("Gather", [table, f"tokens{k}"], f"input_sums{k}")
        self.read(k, f"tokens{k}", sequence, TensorProto.INT64, ["N"])

    def carry_operand(self, k: int, new: str, element: int, *, waits: bool) -> str:
        """Carry the operand of h, and return it; if it `waits`, it changes only inside."""
        if waits:
            choice = [f"inside{k}", new, f"operand{k}_before"]
            new = self.body.add("Where", choice, f"operand{k}_next")
        self.first.append(self.first_operand)
        self.before.append(self._vector(f"operand{k}_before", element))
        self.after.append(self._vector(new, element))
        return new

    def add_output(self, k: int, h: str, element: int) -> None:
        """Output the operand of h at every position."""
        self.body.add("Identity", [h], f"output{k}")
        self.outputs.append(self._vector(f"output{k}", element))

    def carry_maximum(self, k: int, new: str, first: str, element: int) -> None:
        """Carry the maximum of the operand of h inside the source.

        `bound<k>` [N, 1] is the largest operand there, and the least past its end.
        """
        own = self.body.add("Min", [new, f"bound{k}"], f"own{k}")
        self.body.add("Max", [f"maximum{k}_before", own], f"maximum{k}_next")
        self.first.append(first)
        self.before.append(self._vector(f"maximum{k}_before", element))
        self.after.append(self._vector(f"maximum{k}_next", element))

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
