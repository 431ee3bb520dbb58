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

import numpy as np
from onnx import TensorProto, helper

from service.bundle.manifest import Precision
from training.graphs.bidirectional import add_operator_layer, add_scanned_layer
from training.graphs.builder import (
    Float32Array,
    GraphBuilder,
    ValueInfo,
    add_axes,
    array,
    finish_model,
    float_info,
)
from training.graphs.cells import add_gru_split
from training.graphs.convolutions import add_convolutions
from training.graphs.interface import (
    ZERO,
    add_filled,
    add_inside,
    has_source_table,
    memory_shapes,
    state_sizes,
)
from training.graphs.products import Products
from training.graphs.quantization import input_bias
from training.networks.encoder_decoder import FEED, EncoderDecoder


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
            x, summary = add_scanned_layer(graph, products, i, layer, inputs=sums, inside=inside)
        else:
            weights = [array(layer.forwards.weight_ih), array(layer.backwards.weight_ih)]
            if i == 0 and model.encoder.convolutions is None:
                x, weights = _read_tokens(graph, model, products, weights)
            x, summary = add_operator_layer(graph, i, layer, x, weights)
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
        add_filled(graph, "tokens_again", f"{FEED}_out", size, ZERO)
    return [float_info(f"{name}_out", ["N", size]) for name, size in state_sizes(model).items()]
