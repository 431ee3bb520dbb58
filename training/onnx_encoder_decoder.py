"""The exported graphs of an encoder-decoder: one that reads sources, one that takes a step.

N sources, K rows of one source, B = N · K rows, S source positions, M memory positions,
V target vocabulary, H hidden, A attention, R readout, G gates of the cell.

`encoder`: inputs `tokens` [N, S] and `lengths` [N]; outputs the memory (`keys`, `values`, `mask`,
none of them without attention) and the decoder's first states `<state>_out` [N, H].
`decoder`: inputs `tokens` [B], the states [B, H] and the memory [N, …]; outputs `logprobs` [B, V],
`attention` [B, M] and the states after. Rows of one source stand together and share its memory.

What no step changes is computed once, by the encoder: the keys that queries are compared with, and
the values already multiplied by the readout's weights, so that a step adds up R numbers a position
and multiplies nothing more. The encoder is in single precision. In eight bits the decoder's
products have the fixed scales of `quantization`: the states, and the readout that is fed back, lie
within one, as tanh and the cells see to it.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper

from service.bundle import Precision
from training.encoder_decoder import FEED, BidirectionalLayer, Convolutions, EncoderDecoder
from training.onnx_builder import FloatArray, GraphBuilder, array, finish_model, reordered_gates
from training.onnx_cells import (
    add_cell,
    add_gru_split,
    add_int8_matrix,
    add_state_steps,
    int8_product,
    int8_steps,
)
from training.quantization import QuantizedMatrix, input_bias

OUTSIDE = -1e30  # added to the score of a position past the source's end: exp gives an exact zero
ValueInfo: TypeAlias = onnx.ValueInfoProto


def build_encoder(model: EncoderDecoder) -> bytes:
    """The encoder's graph, checked by ONNX's own checker."""
    graph = GraphBuilder()
    _add_axes(graph)
    config = model.config
    graph.add("Cast", ["lengths"], "lengths_64", to=TensorProto.INT64)
    graph.constant("embedding", array(model.encoder.embedding.weight))
    graph.add("Transpose", ["tokens"], "tokens_by_time", perm=[1, 0])  # [S, N]
    x = graph.add("Gather", ["embedding", "tokens_by_time"], "embedded")  # [S, N, E]
    lengths = "lengths_64"
    if model.encoder.convolutions is not None:
        x, lengths = _add_convolutions(graph, model.encoder.convolutions, x)
    inside = _add_inside(graph, x, lengths, "memory")  # [M, N]
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


def build_decoder(model: EncoderDecoder, precision: Precision) -> bytes:
    """The decoder's graph, checked by ONNX's own checker."""
    graph = GraphBuilder()
    _add_axes(graph)
    decoder = model.decoder
    products = _Products(graph, precision)
    names = decoder.recurrent_names
    bias = _add_embedding_products(graph, model)
    bounded = [FEED] if model.config.input_feeding else []
    output = ""
    for i in range(model.config.decoder_layers):
        output = _add_decoder_layer(graph, model, products, i, bias=bias, bounded=bounded)
        bias, bounded = "", [output]
    readout = _add_readout(graph, model, products, output)  # [B, R]
    if model.config.input_feeding:
        graph.add("Identity", [readout], f"{FEED}_out")
    _rename(graph, {f"{x}_before": x for x in names} | {f"{x}_new": f"{x}_out" for x in names})
    graph.constant("output_weight", array(decoder.output.weight).T)  # [R, V]
    graph.constant("output_bias", array(decoder.output.bias))
    # In three dimensions, as everywhere: a product of two matrices and a bias becomes a Gemm, whose
    # kernel depends on the number of rows.
    graph.add("Unsqueeze", [readout, "axis_1"], "readouts")  # [B, 1, R]
    graph.add("MatMul", ["readouts", "output_weight"], "output_product")
    graph.add("Add", ["output_product", "output_bias"], "logits")
    graph.add("LogSoftmax", ["logits"], "all_logprobs", axis=-1)
    graph.add("Squeeze", ["all_logprobs", "axis_1"], "logprobs")  # [B, V]
    states = [_float_info(name, ["B", size]) for name, size in state_sizes(model).items()]
    after = [_float_info(f"{name}_out", ["B", size]) for name, size in state_sizes(model).items()]
    inputs = [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["B"]), *states]
    outputs = [_float_info("logprobs", ["B", decoder.vocab_size]), *after]
    if decoder.attention is not None:
        outputs.append(_float_info("attention", ["B", "M"]))
    inputs += [_float_info(name, ["N", *shape]) for name, shape in memory_shapes(model).items()]
    return finish_model(graph, inputs, outputs)


def state_sizes(model: EncoderDecoder) -> dict[str, int]:
    """The decoder's states by name, with their sizes after the batch axis."""
    hidden, readout = model.config.hidden_size, model.decoder.readout_size
    return {name: readout if name == FEED else hidden for name in model.decoder.state_names}


def memory_shapes(model: EncoderDecoder) -> dict[str, list[int | str]]:
    """The memory's tensors by name, with their shapes after the axis of sources."""
    attention = model.decoder.attention
    if attention is None:
        return {}
    size = 2 * model.config.encoder_hidden_size
    size = size if attention.kind == "dot" else model.config.hidden_size
    # Keys lie as the products take them: a position a column for Luong's scores.
    keys: list[int | str] = ["M", size] if attention.kind == "additive" else [size, "M"]
    return {"keys": keys, "values": ["M", model.decoder.readout_size], "mask": ["M"]}


# --- the encoder -----------------------------------------------------------------------------


def _add_convolutions(graph: GraphBuilder, front: Convolutions, x: str) -> tuple[str, str]:
    """`x` [S, N, E] to [M, N, F], and the lengths there."""
    _add_inside(graph, x, "lengths_64", "source")  # [S, N]
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
        both = _affine(graph, f"highway{i}", x, array(layer.weight).T, array(layer.bias))  # type: ignore[arg-type]
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
        product = _affine(
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
                _float_info("h_before", vector),
                _float_info("projected", vector),
                helper.make_tensor_value_info("inside", TensorProto.BOOL, ["N", 1]),
            ],
            [_float_info("h_next", vector), _float_info("output", vector)],
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
    return [_float_info(name, ["N", *shape]) for name, shape in memory_shapes(model).items()]


def _add_bridges(graph: GraphBuilder, model: EncoderDecoder) -> list[ValueInfo]:
    """The decoder's first states from `summary` [N, D]."""
    graph.add("Unsqueeze", ["summary", "axis_1"], "summaries")  # [N, 1, D]
    for name, bridge in model.decoder.bridges.items():
        weight, bias = array(bridge.weight).T, array(bridge.bias)  # type: ignore[arg-type]
        state = _affine(graph, f"bridge_{name}", "summaries", weight, bias)
        if name.startswith("h"):
            state = graph.add("Tanh", [state], f"bridge_{name}_bounded")
        graph.add("Squeeze", [state, "axis_1"], f"{name}_out")
    if model.config.input_feeding:
        size = model.decoder.readout_size
        graph.add("Transpose", ["tokens"], "tokens_again", perm=[1, 0])
        _add_zeros(graph, "tokens_again", f"{FEED}_out", size)
    return [_float_info(f"{name}_out", ["N", size]) for name, size in state_sizes(model).items()]


# --- the decoder -----------------------------------------------------------------------------


class _Products:
    """Products of what lies within one with weights, in the graph's precision."""

    def __init__(self, graph: GraphBuilder, precision: Precision) -> None:
        self._graph = graph
        self._int8 = precision == "int8"
        if self._int8:
            add_state_steps(graph)

    def add(self, name: str, inputs: Sequence[str], weight: FloatArray) -> str:
        """The product [B, n] of `inputs`, one beside the other, with `weight` [K, n]."""
        graph = self._graph
        if self._int8:
            add_int8_matrix(graph, name, QuantizedMatrix.of(weight))
            steps = [int8_steps(graph, x, f"{name}_{x}_steps") for x in inputs]
            whole = steps[0]
            if len(steps) > 1:
                whole = graph.add("Concat", steps, f"{name}_steps", axis=-1)
            return int8_product(graph, whole, name)
        graph.constant(f"{name}_weight", weight)
        whole = inputs[0]
        if len(inputs) > 1:
            whole = graph.add("Concat", list(inputs), f"{name}_inputs", axis=-1)
        graph.add("Unsqueeze", [whole, "axis_1"], f"{name}_rows")
        graph.add("MatMul", [f"{name}_rows", f"{name}_weight"], f"{name}_products")
        return graph.add("Squeeze", [f"{name}_products", "axis_1"], f"{name}_product")


def _add_embedding_products(graph: GraphBuilder, model: EncoderDecoder) -> str:
    """What the first layer adds for each token read, biases included, [B, G·H]."""
    decoder, layer = model.decoder, model.decoder.recurrent_layers[0]
    embedding = array(decoder.embedding.weight)  # [V, E]
    weight = array(layer.weight_ih)[:, : model.config.embedding_dim].T  # [E, G·H]
    bias = input_bias(model.config.cell, layer)
    if table_is_smaller(decoder.vocab_size, *weight.shape):
        table = embedding.astype(np.float64) @ weight + bias
        graph.constant("table", table.astype(np.float32))
        return graph.add("Gather", ["table", "tokens"], "token_sums")
    graph.constant("embedding", embedding)
    graph.constant("embedding_weight", weight)
    graph.constant("embedding_bias", bias)
    graph.add("Gather", ["embedding", "tokens"], "embedded")
    graph.add("Unsqueeze", ["embedded", "axis_1"], "embedded_rows")
    graph.add("MatMul", ["embedded_rows", "embedding_weight"], "embedding_products")
    graph.add("Add", ["embedding_products", "embedding_bias"], "embedding_sums")
    return graph.add("Squeeze", ["embedding_sums", "axis_1"], "token_sums")


def table_is_smaller(vocab_size: int, embedding_dim: int, sums: int) -> bool:
    """Whether a table of input products [V, G·H] is smaller than what it is made of."""
    return vocab_size * sums <= vocab_size * embedding_dim + embedding_dim * sums


def _add_decoder_layer(
    graph: GraphBuilder,
    model: EncoderDecoder,
    products: _Products,
    i: int,
    *,
    bias: str,
    bounded: Sequence[str],
) -> str:
    """One layer's step from its `bounded` inputs [B, …].

    The first layer's `bias` [B, G·H] has what the token adds; the others' is their own.
    """
    config, layer = model.config, model.decoder.recurrent_layers[i]
    h = f"h{i}_before"
    weight_ih, weight_hh = array(layer.weight_ih).T, array(layer.weight_hh).T
    weight_in = weight_ih[config.embedding_dim :] if i == 0 else weight_ih
    bias = bias or graph.constant(f"bias{i}", input_bias(config.cell, layer))
    if config.cell == "gru":
        if i == 0:
            add_gru_split(graph, config.hidden_size)
        candidate_bias = np.split(array(layer.bias_hh), 3)[2]
        graph.constant(f"candidate_bias{i}", candidate_bias)
        sums = bias
        if bounded:
            product = products.add(f"input{i}", bounded, weight_in)
            sums = graph.add("Add", [product, bias], f"input{i}_sum")
        recurrent = products.add(f"recurrent{i}", [h], weight_hh)
        return add_cell(graph, config.cell, i, sums, recurrent)
    weight = np.concatenate([weight_in, weight_hh]) if bounded else weight_hh
    product = products.add(f"recurrent{i}", [*bounded, h], weight)
    return add_cell(graph, config.cell, i, graph.add("Add", [product, bias], f"total{i}"))


def _add_readout(graph: GraphBuilder, model: EncoderDecoder, products: _Products, h: str) -> str:
    """tanh(W [context; h]) [B, R]; the context's part is added up over the memory's values."""
    decoder = model.decoder
    attended = 0 if decoder.attention is None else 2 * model.config.encoder_hidden_size
    graph.constant("readout_bias", array(decoder.readout.bias))
    own = products.add("readout", [h], array(decoder.readout.weight)[:, attended:].T)
    total = graph.add("Add", [own, "readout_bias"], "readout_own")
    if decoder.attention is not None:
        context = _add_attention(graph, model, h)
        total = graph.add("Add", [total, context], "readout_total")
    return graph.add("Tanh", [total], "readout_output")


def _add_attention(graph: GraphBuilder, model: EncoderDecoder, h: str) -> str:
    """The weighted sum of the memory's values [B, R]; makes `attention` [B, M]."""
    attention = model.decoder.attention
    if attention is None:
        raise ValueError("the model has no attention")
    graph.add("Shape", ["mask"], "sources", start=0, end=1)
    graph.add("Shape", ["mask"], "positions", start=1, end=2)
    graph.constant("rest", np.array([-1], np.int64))
    graph.constant("hidden_size", np.array([model.config.hidden_size], np.int64))
    graph.constant("readout_size", np.array([model.decoder.readout_size], np.int64))
    graph.add("Concat", ["sources", "rest", "hidden_size"], "query_shape", axis=0)
    graph.add("Concat", ["rest", "positions"], "attention_shape", axis=0)
    graph.add("Concat", ["rest", "readout_size"], "context_shape", axis=0)
    if attention.kind == "additive":
        scores = _add_additive_scores(graph, attention.query, attention.score, h)
    else:
        queries = graph.add("Reshape", [h, "query_shape"], "queries")  # [N, K, H]
        scores = graph.add("MatMul", [queries, "keys"], "scores")  # [N, K, M]
    graph.add("Unsqueeze", ["mask", "axis_1"], "mask_rows")  # [N, 1, M]
    graph.add("Add", [scores, "mask_rows"], "masked_scores")
    graph.add("Softmax", ["masked_scores"], "weights", axis=-1)
    graph.add("Reshape", ["weights", "attention_shape"], "attention")  # [B, M]
    graph.add("MatMul", ["weights", "values"], "contexts")  # [N, K, R]
    return graph.add("Reshape", ["contexts", "context_shape"], "context")


def _add_additive_scores(graph: GraphBuilder, query: "object", score: "object", h: str) -> str:
    """u·tanh(W_h h + keys) [N, K, M]."""
    graph.add("Unsqueeze", [h, "axis_1"], "query_rows")
    weight, bias = array(query.weight).T, array(query.bias)  # type: ignore[attr-defined]
    projected = _affine(graph, "query", "query_rows", weight, bias)  # [B, 1, A]
    graph.add("Reshape", [projected, "query_shape"], "queries")  # [N, K, A]
    graph.add("Unsqueeze", ["queries", "axis_2"], "queries_wide")  # [N, K, 1, A]
    graph.add("Unsqueeze", ["keys", "axis_1"], "keys_wide")  # [N, 1, M, A]
    graph.add("Add", ["queries_wide", "keys_wide"], "score_sums")
    graph.add("Tanh", ["score_sums"], "score_inputs")
    graph.constant("score_weight", array(score.weight).T)  # type: ignore[attr-defined]
    graph.add("MatMul", ["score_inputs", "score_weight"], "score_columns")  # [N, K, M, 1]
    graph.constant("axis_3", np.array([3], np.int64))
    return graph.add("Squeeze", ["score_columns", "axis_3"], "scores")


# --- shared ----------------------------------------------------------------------------------


def _add_axes(graph: GraphBuilder) -> None:
    for axis in range(3):
        graph.constant(f"axis_{axis}", np.array([axis], np.int64))


def _affine(graph: GraphBuilder, name: str, x: str, weight: FloatArray, bias: FloatArray) -> str:
    """`x` [.., .., K] times `weight` [K, n], plus `bias` [n]."""
    graph.constant(f"{name}_weight", weight)
    graph.constant(f"{name}_bias", bias)
    graph.add("MatMul", [x, f"{name}_weight"], f"{name}_product")
    return graph.add("Add", [f"{name}_product", f"{name}_bias"], f"{name}_sum")


def _add_inside(graph: GraphBuilder, x: str, lengths: str, name: str) -> str:
    """Where positions of `x` [T, N, …] lie inside the `lengths` [N]: booleans [T, N]."""
    graph.constant(f"{name}_zero", np.array(0, np.int64))
    graph.constant(f"{name}_one", np.array(1, np.int64))
    graph.add("Shape", [x], f"{name}_shape", start=0, end=1)
    graph.add("Squeeze", [f"{name}_shape", "axis_0"], f"{name}_time")
    graph.add("Range", [f"{name}_zero", f"{name}_time", f"{name}_one"], f"{name}_positions")
    graph.add("Unsqueeze", [f"{name}_positions", "axis_1"], f"{name}_column")  # [T, 1]
    return graph.add("Less", [f"{name}_column", lengths], f"{name}_inside")


def _float_info(name: str, shape: Sequence[int | str]) -> ValueInfo:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def _rename(graph: GraphBuilder, names: dict[str, str]) -> None:
    """The cells call a state before and after otherwise than the graph does."""
    for node in graph.nodes:
        inputs = [names.get(name, name) for name in node.input]
        outputs = [names.get(name, name) for name in node.output]
        del node.input[:], node.output[:]
        node.input.extend(inputs)
        node.output.extend(outputs)
