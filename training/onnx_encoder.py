"""The encoder's graph: sources to their memory and the decoder's first states.

N sources, S source positions, M memory positions, E embedding, H hidden, A attention, R readout,
D width of the memory, F features of the convolutions.

Inputs `tokens` [N, S] and `lengths` [N]; outputs the memory (`keys`, `values`, `mask`, none of them
without attention) and the decoder's first states `<state>_out` [N, …]. What no step of the decoder
changes is computed here, once: the keys that queries are compared with, and the values already
multiplied by the readout's weights, so that a step adds up R numbers a position and multiplies
nothing more.
"""

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto, helper

from training.encoder_decoder import FEED, BidirectionalLayer, Convolutions, EncoderDecoder
from training.onnx_builder import FloatArray, GraphBuilder, array, finish_model, reordered_gates
from training.onnx_interface import (
    ValueInfo,
    add_axes,
    add_inside,
    affine,
    float_info,
    memory_shapes,
    state_sizes,
)

OUTSIDE = -1e30  # added to the score of a position past the source's end: exp gives an exact zero


def build_encoder(model: EncoderDecoder) -> bytes:
    """The encoder's graph, checked by ONNX's own checker."""
    graph = GraphBuilder()
    add_axes(graph)
    config = model.config
    graph.add("Cast", ["lengths"], "lengths_64", to=TensorProto.INT64)
    graph.constant("embedding", array(model.encoder.embedding.weight))
    graph.add("Transpose", ["tokens"], "tokens_by_time", perm=[1, 0])  # [S, N]
    x = graph.add("Gather", ["embedding", "tokens_by_time"], "embedded")  # [S, N, E]
    lengths = "lengths_64"
    if model.encoder.convolutions is not None:
        x, lengths = _add_convolutions(graph, model.encoder.convolutions, x)
    inside = add_inside(graph, x, lengths, "memory")  # [M, N]
    graph.add("Cast", [lengths], "memory_lengths", to=TensorProto.INT32)
    summary: list[str] = []
    for i, layer in enumerate(model.encoder.bidirectional_layers):
        add = _add_scanned_layer if config.cell == "rnn" else _add_operator_layer
        x, summary = add(graph, i, layer, x, inside)  # [M, N, D] and twice [N, D / 2]
    graph.add("Concat", summary, "summary", axis=-1)  # [N, D]
    outputs = _add_memory(graph, model, x, inside) + _add_bridges(graph, model)
    inputs = [
        helper.make_tensor_value_info("tokens", TensorProto.INT64, ["N", "S"]),
        helper.make_tensor_value_info("lengths", TensorProto.INT32, ["N"]),
    ]
    return finish_model(graph, inputs, outputs)


def _add_convolutions(graph: GraphBuilder, front: Convolutions, x: str) -> tuple[str, str]:
    """`x` [S, N, E] to [M, N, F], and the lengths there."""
    add_inside(graph, x, "lengths_64", "source")  # [S, N]
    graph.add("Transpose", ["source_inside"], "source_inside_rows", perm=[1, 0])
    graph.add("Unsqueeze", ["source_inside_rows", "axis_1"], "source_inside_channels")  # [N, 1, S]
    graph.add("Transpose", [x], "channels", perm=[1, 2, 0])  # [N, E, S]
    graph.constant("nothing", np.array(0.0, np.float32))
    graph.add("Where", ["source_inside_channels", "channels", "nothing"], "masked_channels")
    parts = []
    for i, convolution in enumerate(front.convolutions):
        weight = array(convolution.weight)  # type: ignore[arg-type]
        width = weight.shape[2]
        graph.constant(f"convolution{i}_weight", weight)
        graph.constant(f"convolution{i}_bias", array(convolution.bias))  # type: ignore[arg-type]
        inputs = ["masked_channels", f"convolution{i}_weight", f"convolution{i}_bias"]
        graph.add("Conv", inputs, f"convolved{i}", pads=[(width - 1) // 2, width // 2])
        parts.append(graph.add("Relu", [f"convolved{i}"], f"filtered{i}"))
    graph.add("Concat", parts, "filtered", axis=1)  # [N, F, S]
    graph.add("Where", ["source_inside_channels", "filtered", "nothing"], "features")
    options = {"kernel_shape": [front.stride], "strides": [front.stride], "ceil_mode": 1}
    graph.add("MaxPool", ["features"], "pooled", **options)  # [N, F, M]
    x = graph.add("Transpose", ["pooled"], "pooled_by_time", perm=[2, 0, 1])  # [M, N, F]
    graph.constant("all_of_it", np.array(1.0, np.float32))
    for i, layer in enumerate(front.highways):
        both = affine(graph, f"highway{i}", x, array(layer.weight).T, array(layer.bias))  # type: ignore[arg-type]
        graph.add("Split", [both], f"candidate{i}_sum", f"gate{i}_sum", axis=-1, num_outputs=2)
        graph.add("Relu", [f"candidate{i}_sum"], f"candidate{i}")
        graph.add("Sigmoid", [f"gate{i}_sum"], f"gate{i}")
        graph.add("Sub", ["all_of_it", f"gate{i}"], f"carry{i}")
        graph.add("Mul", [f"gate{i}", f"candidate{i}"], f"transformed{i}")
        graph.add("Mul", [f"carry{i}", x], f"carried{i}")
        x = graph.add("Add", [f"transformed{i}", f"carried{i}"], f"highway{i}_output")
    graph.constant("stride", np.array(front.stride, np.int64))
    graph.constant("stride_less_one", np.array(front.stride - 1, np.int64))
    graph.add("Add", ["lengths_64", "stride_less_one"], "lengths_up")
    return x, graph.add("Div", ["lengths_up", "stride"], "pooled_lengths")


def _add_operator_layer(
    graph: GraphBuilder, i: int, layer: BidirectionalLayer, x: str, _: str
) -> tuple[str, list[str]]:
    """ONNX's bidirectional LSTM or GRU: outputs [M, N, D], and its last states [N, D / 2] twice."""
    both = (layer.forwards, layer.backwards)

    def stacked(parts: Sequence[Sequence[FloatArray]]) -> FloatArray:
        return np.stack(
            [np.concatenate([reordered_gates(layer.cell, x) for x in part]) for part in parts]
        )

    parameters = [
        graph.constant(f"weight_ih{i}", stacked([[array(x.weight_ih)] for x in both])),
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


def _add_scanned_layer(
    graph: GraphBuilder, i: int, layer: BidirectionalLayer, x: str, inside: str
) -> tuple[str, list[str]]:
    """The tanh RNN as two Scans: onnxruntime's operator is not exact at one row."""
    outputs, last = [], []
    hidden = layer.forwards.weight_hh.shape[1]
    graph.add("Unsqueeze", [inside, "axis_2"], f"inside{i}")  # [M, N, 1]
    for name, direction in (("forward", layer.forwards), ("backward", layer.backwards)):
        prefix = f"{name}{i}"
        product = affine(
            graph,
            prefix,
            x,
            array(direction.weight_ih).T,
            array(direction.bias_ih) + array(direction.bias_hh),
        )  # [M, N, H]
        if name == "backward":
            product = _reverse(graph, product, f"{prefix}_reversed")
        zeros = _add_zeros(graph, x, f"{prefix}_zeros", hidden)
        graph.constant(f"{prefix}_recurrent", array(direction.weight_hh).T)
        body = GraphBuilder()
        body.add("MatMul", ["h_before", f"{prefix}_recurrent"], "recurrent")
        body.add("Add", ["recurrent", "projected"], "total")
        body.add("Tanh", ["total"], "h_new")
        body.add("Where", ["inside", "h_new", "h_before"], "h_next")
        body.add("Identity", ["h_new"], "output")
        vector: list[str | int] = ["N", hidden]
        subgraph = helper.make_graph(
            body.nodes,
            "step",
            [
                float_info("h_before", vector),
                float_info("projected", vector),
                helper.make_tensor_value_info("inside", TensorProto.BOOL, ["N", 1]),
            ],
            [float_info("h_next", vector), float_info("output", vector)],
        )
        graph.add(
            "Scan",
            [zeros, product, f"inside{i}"],
            f"{prefix}_last",
            f"{prefix}_outputs",
            num_scan_inputs=2,
            body=subgraph,
        )
        output = f"{prefix}_outputs"
        if name == "backward":
            output = _reverse(graph, output, f"{prefix}_restored")
        outputs.append(output)
        last.append(f"{prefix}_last")
    return graph.add("Concat", outputs, f"outputs{i}", axis=-1), last


def _reverse(graph: GraphBuilder, x: str, name: str) -> str:
    """Each row's own positions turned around."""
    graph.add("Cast", ["memory_lengths"], f"{name}_lengths", to=TensorProto.INT64)
    return graph.add("ReverseSequence", [x, f"{name}_lengths"], name, batch_axis=1, time_axis=0)


def _add_zeros(graph: GraphBuilder, x: str, name: str, size: int) -> str:
    """Zeros [N, size], N from `x` [M, N, …]."""
    graph.add("Shape", [x], f"{name}_rows", start=1, end=2)
    graph.constant(f"{name}_size", np.array([size], np.int64))
    graph.add("Concat", [f"{name}_rows", f"{name}_size"], f"{name}_shape", axis=0)
    zero = helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0])
    return graph.add("ConstantOfShape", [f"{name}_shape"], name, value=zero)


def _add_memory(graph: GraphBuilder, model: EncoderDecoder, x: str, inside: str) -> list[ValueInfo]:
    """Keys, values and mask of `x` [M, N, D]."""
    attention = model.decoder.attention
    if attention is None:
        return []
    rows = graph.add("Transpose", [x], "memory_rows", perm=[1, 0, 2])  # [N, M, D]
    keys = rows
    if attention.kind != "dot":
        graph.constant("key_weight", array(attention.key.weight).T)
        keys = graph.add("MatMul", [rows, "key_weight"], "key_product")  # [N, M, A]
    if attention.kind == "additive":
        graph.add("Identity", [keys], "keys")
    else:
        graph.add("Transpose", [keys], "keys", perm=[0, 2, 1])  # [N, A, M]
    size = 2 * model.config.encoder_hidden_size
    graph.constant("value_weight", array(model.decoder.readout.weight)[:, :size].T)  # [D, R]
    graph.add("MatMul", [rows, "value_weight"], "values")  # [N, M, R]
    graph.constant("score_inside", np.array(0.0, np.float32))
    graph.constant("score_outside", np.array(OUTSIDE, np.float32))
    graph.add("Transpose", [inside], "memory_inside_rows", perm=[1, 0])  # [N, M]
    graph.add("Where", ["memory_inside_rows", "score_inside", "score_outside"], "mask")
    return [float_info(name, ["N", *shape]) for name, shape in memory_shapes(model).items()]


def _add_bridges(graph: GraphBuilder, model: EncoderDecoder) -> list[ValueInfo]:
    """The decoder's first states from `summary` [N, D]."""
    graph.add("Unsqueeze", ["summary", "axis_1"], "summaries")  # [N, 1, D]
    for name, bridge in model.decoder.bridges.items():
        weight, bias = array(bridge.weight).T, array(bridge.bias)  # type: ignore[arg-type]
        state = affine(graph, f"bridge_{name}", "summaries", weight, bias)
        if name.startswith("h"):
            state = graph.add("Tanh", [state], f"bridge_{name}_bounded")
        graph.add("Squeeze", [state, "axis_1"], f"{name}_out")
    if model.config.input_feeding:
        size = model.decoder.readout_size
        graph.add("Transpose", ["tokens"], "tokens_again", perm=[1, 0])
        _add_zeros(graph, "tokens_again", f"{FEED}_out", size)
    return [float_info(f"{name}_out", ["N", size]) for name, size in state_sizes(model).items()]
