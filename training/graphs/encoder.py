"""The encoder's graph: sources to their memory and the decoder's first states.

N sources, S source positions, M memory positions, E embedding, H hidden, A attention, R readout,
D width of the memory, F features of the convolutions, G gates of the cell.

Inputs `tokens` [N, S] and `lengths` [N]; outputs the memory (`keys`, `values`, `inside`, none of
them without attention) and the decoder's first states `<state>_out` [N, …]. Whatever is the same at
every step of the decoder is computed here, once: the keys that queries are compared with, and the
values, already multiplied by the readout's weights, so that a step only adds up R numbers a
position.

LSTM and GRU in single precision are ONNX's operators, which give a row the same bits in any batch.
The tanh RNN, whose operator does not, and every cell in eight bits are Scans of small operators.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import TensorProto, helper

from service.bundle.manifest import Precision
from training.graphs.builder import (
    Float32Array,
    GraphBuilder,
    ValueInfo,
    add_axes,
    array,
    finish_model,
    float_info,
    reordered_gates,
)
from training.graphs.cells import add_cell, add_gru_split
from training.graphs.convolutions import add_convolutions
from training.graphs.interface import (
    add_inside,
    has_source_table,
    memory_shapes,
    state_sizes,
)
from training.graphs.products import Products
from training.graphs.quantization import candidate_bias, input_bias
from training.networks.encoder import BidirectionalLayer
from training.networks.encoder_decoder import FEED, EncoderDecoder
from training.networks.recurrent import RecurrentLayer

# The states that a step takes from the previous one, besides the operand of h.
_SCANNED_STATES = {"rnn": (), "gru": ("h",), "lstm": ("c",)}
_ZERO = helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0])


def build_encoder(model: EncoderDecoder, precision: Precision) -> bytes:
    """The encoder's graph, checked by ONNX's own checker."""
    graph = GraphBuilder()
    add_axes(graph)
    products = Products(graph, precision)
    config = model.config
    scans = config.cell == "rnn" or precision == "int8"
    if scans and config.cell == "gru":
        add_gru_split(graph, config.encoder_hidden_size)
    graph.add("Cast", ["lengths"], "lengths_64", to=TensorProto.INT64)
    graph.add("Transpose", ["tokens"], "tokens_by_time", perm=[1, 0])  # [S, N]
    x, lengths = "tokens_by_time", "lengths_64"
    if model.encoder.convolutions is not None:
        x, lengths = add_convolutions(
            graph, model.encoder.convolutions, _embed(graph, model, products)
        )
    inside = add_inside(graph, x, lengths, "memory")  # [M, N]
    if not scans:
        graph.add("Cast", [lengths], "memory_lengths", to=TensorProto.INT32)
    summary: list[str] = []
    for i, layer in enumerate(model.encoder.bidirectional_layers):
        if scans:
            sums = _add_input_sums(graph, model, products, i, x)
            x, summary = _add_scanned_layer(graph, products, i, layer, inputs=sums, inside=inside)
        else:
            weights = [array(layer.forwards.weight_ih), array(layer.backwards.weight_ih)]
            if i == 0 and model.encoder.convolutions is None:
                x, weights = _read_tokens(graph, model, products, weights)
            x, summary = _add_operator_layer(graph, i, layer, x, weights)
    products.beside(summary, "summary")  # [N, D]
    outputs = _add_memory(graph, model, products, x, inside) + _add_bridges(graph, model, products)
    inputs = [
        helper.make_tensor_value_info("tokens", TensorProto.INT64, ["N", "S"]),
        helper.make_tensor_value_info("lengths", TensorProto.INT32, ["N"]),
    ]
    return finish_model(graph, inputs, outputs)


def _embed(graph: GraphBuilder, model: EncoderDecoder, products: Products) -> str:
    """Embeddings [S, N, E] of the tokens."""
    products.add_stored("embedding_columns", array(model.encoder.embedding.weight).T)  # [E, V]
    graph.add("Transpose", ["embedding_columns"], "embedding", perm=[1, 0])
    return graph.add("Gather", ["embedding", "tokens_by_time"], "embedded")


def _read_tokens(
    graph: GraphBuilder, model: EncoderDecoder, products: Products, weights: list[Float32Array]
) -> tuple[str, list[Float32Array]]:
    """The first operator's input [S, N, …], and the weights [G·H, …] that multiply it.

    If that makes the file smaller, one-hot rows pick columns from a table of products. That is
    exact: everything else they add up is zero.
    """
    embedding = array(model.encoder.embedding.weight)
    if not has_source_table(model):
        return _embed(graph, model, products), weights
    graph.constant("vocab_size", np.array(len(embedding), np.int64))
    graph.constant("zero_and_one", np.array([0.0, 1.0], np.float32))
    x = graph.add("OneHot", ["tokens_by_time", "vocab_size", "zero_and_one"], "chosen")
    exact = embedding.astype(np.float64).T
    return x, [(weight @ exact).astype(np.float32) for weight in weights]


def _add_operator_layer(
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


def _add_input_sums(
    graph: GraphBuilder, model: EncoderDecoder, products: Products, i: int, x: str
) -> list[str]:
    """The sums [M, N, G·H] of a layer's input for each direction, biases included.

    For the first layer `x` is the tokens [S, N], or the features [M, N, F] of convolutions; for
    the others it is the operand [M, N, D] of the outputs below.
    """
    layer = model.encoder.bidirectional_layers[i]
    directions = {f"forward{i}": layer.forwards, f"backward{i}": layer.backwards}
    biases = {name: input_bias(layer.cell, each) for name, each in directions.items()}
    weights = {name: array(each.weight_ih).T for name, each in directions.items()}  # [.., G·H]
    if i == 0 and has_source_table(model):
        embedding = array(model.encoder.embedding.weight).astype(np.float64)
        for name in directions:
            table = embedding @ weights[name] + biases[name]
            graph.constant(f"{name}_table", table.astype(np.float32))
        return [graph.add("Gather", [f"{name}_table", x], f"{name}_sums") for name in directions]
    if i == 0 and model.encoder.convolutions is None:
        x = _embed(graph, model, products)
    sums = []
    for name in directions:
        graph.constant(f"{name}_bias", biases[name])
        if i:
            product = products.add_positions(f"{name}_input", x, weights[name])
        else:
            # Neither embeddings nor convolutional features have a bound.
            weight = products.add_stored(f"{name}_weight", weights[name])
            product = graph.add("MatMul", [x, weight], f"{name}_product")
        sums.append(graph.add("Add", [product, f"{name}_bias"], f"{name}_sums"))
    return sums


def _add_scanned_layer(
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
    operand = _add_filled(graph, inputs[0], f"operand{i}", hidden, products.zero)
    state = _add_filled(graph, inputs[0], f"state{i}", hidden, _ZERO)
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


def _add_filled(graph: GraphBuilder, x: str, name: str, size: int, value: TensorProto) -> str:
    """A tensor [N, size] of one number, N from `x` [M, N, …]."""
    graph.add("Shape", [x], f"{name}_rows", start=1, end=2)
    graph.constant(f"{name}_size", np.array([size], np.int64))
    graph.add("Concat", [f"{name}_rows", f"{name}_size"], f"{name}_shape", axis=0)
    return graph.add("ConstantOfShape", [f"{name}_shape"], name, value=value)


def _add_memory(
    graph: GraphBuilder, model: EncoderDecoder, products: Products, x: str, inside: str
) -> list[ValueInfo]:
    """Keys and values of the operand `x` [M, N, D], and a mask: 1 inside, 0 past the end."""
    attention = model.decoder.attention
    if attention is None:
        return []
    rows = graph.add("Transpose", [x], "memory_rows", perm=[1, 0, 2])  # [N, M, D]
    if attention.kind == "dot":
        keys = products.add_numbers(rows, "key_numbers")
    else:
        keys = products.add_positions("key", rows, array(attention.key.weight).T)  # [N, M, A]
    if attention.kind == "additive":
        graph.add("Identity", [keys], "keys")
    else:
        graph.add("Transpose", [keys], "keys", perm=[0, 2, 1])  # [N, A, M]
    size = 2 * model.config.encoder_hidden_size
    weight = array(model.decoder.readout.weight)[:, :size].T  # [D, R]
    graph.add("Identity", [products.add_positions("value", rows, weight)], "values")  # [N, M, R]
    graph.add("Transpose", [inside], "memory_inside_rows", perm=[1, 0])  # [N, M]
    graph.add("Cast", ["memory_inside_rows"], "inside", to=TensorProto.FLOAT)
    return [float_info(name, ["N", *shape]) for name, shape in memory_shapes(model).items()]


def _add_bridges(graph: GraphBuilder, model: EncoderDecoder, products: Products) -> list[ValueInfo]:
    """The decoder's first states from the operand `summary` [N, D]."""
    for name, bridge in model.decoder.bridges.items():
        product = products.add_rows(f"bridge_{name}", "summary", array(bridge.weight).T)  # type: ignore[arg-type]
        graph.constant(f"bridge_{name}_bias", array(bridge.bias))  # type: ignore[arg-type]
        if name.startswith("h"):
            graph.add("Add", [product, f"bridge_{name}_bias"], f"bridge_{name}_sum")
            graph.add("Tanh", [f"bridge_{name}_sum"], f"{name}_out")
        else:
            graph.add("Add", [product, f"bridge_{name}_bias"], f"{name}_out")
    if model.config.input_feeding:
        size = model.decoder.readout_size
        graph.add("Transpose", ["tokens"], "tokens_again", perm=[1, 0])
        _add_filled(graph, "tokens_again", f"{FEED}_out", size, _ZERO)
    return [float_info(f"{name}_out", ["N", size]) for name, size in state_sizes(model).items()]
