"""The encoder's graph: sources to their memory and the decoder's first states.

N sources, S source positions, M memory positions, E embedding, H hidden, A attention, R readout,
D width of the memory, F features of the convolutions, G gates of the cell.

Inputs `tokens` [N, S] and `lengths` [N]; outputs the memory (`keys`, `values`, `inside`, none of
them without attention) and the decoder's first states `<state>_out` [N, …]. Whatever is the same at
every step of the decoder is computed here, once: the keys that queries are compared with, and the
values, already multiplied by the readout's weights, so that a step only adds up R numbers a
position.
"""

from onnx import TensorProto, helper

from service.bundle.manifest import Precision
from training.graphs.builder import (
    GraphBuilder,
    ValueInfo,
    add_axes,
    array,
    finish_model,
    float_info,
)
from training.graphs.convolutions import add_convolutions
from training.graphs.interface import (
    memory_shapes,
    source_stack,
    state_sizes,
)
from training.graphs.nodes import ZERO, add_filled, add_inside
from training.graphs.products import Products
from training.graphs.stack import add_stack, embed
from training.networks.encoder_decoder import FEED, EncoderDecoder


def build_encoder(model: EncoderDecoder, precision: Precision) -> bytes:
    """The encoder's graph, checked by ONNX's own checker."""
    graph = GraphBuilder()
    add_axes(graph)
    products = Products(graph, precision)
    graph.add("Cast", ["lengths"], "lengths_64", to=TensorProto.INT64)
    graph.add("Transpose", ["tokens"], "tokens_by_time", perm=[1, 0])  # [S, N]
    x, lengths = "tokens_by_time", "lengths_64"
    front = model.encoder.convolutions
    if front is not None:
        embedded = embed(graph, products, model.encoder.embedding, x)
        x, lengths = add_convolutions(graph, front, embedded)
    inside = add_inside(graph, x, lengths, "memory")  # [M, N]
    stack = source_stack(model)
    x, summary = add_stack(graph, products, precision, stack, x=x, lengths=lengths, inside=inside)
    products.beside(summary, "summary")  # [N, D]
    outputs = _add_memory(graph, model, products, x, inside) + _add_bridges(graph, model, products)
    inputs = [
        helper.make_tensor_value_info("tokens", TensorProto.INT64, ["N", "S"]),
        helper.make_tensor_value_info("lengths", TensorProto.INT32, ["N"]),
    ]
    return finish_model(graph, inputs, outputs)


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
