"""The decoder's graph: one token a row.

N sources, K rows of one source, B = N · K rows, M memory positions, V target vocabulary,
E embedding, H hidden, A attention, R readout, G gates of the cell.

Inputs `tokens` [B], the states [B, …] and the memory [N, …]; outputs `logprobs` [B, V], `attention`
[B, M] and the states after. Rows of one source stand together and share its memory.
"""

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto, helper
from torch import nn

from service.bundle.manifest import Precision
from training.graphs.builder import GraphBuilder, add_axes, array, finish_model, float_info
from training.graphs.cells import LSTM_GATES, add_cell, add_gru_split, add_lstm
from training.graphs.interface import (
    has_target_table,
    memory_shapes,
    state_sizes,
)
from training.graphs.nodes import affine
from training.graphs.products import Products
from training.graphs.quantization import candidate_bias, input_bias
from training.networks.encoder_decoder import FEED, EncoderDecoder

FAR_DOWN = 1e30  # subtracted from scores past the source's end, so that exp gives exact zeros
# Axes that are added to the memory: keys become [1, N, 1, H, M], values [1, 1, N, 1, M, R].
_MEMORY_AXES = {"keys": [0, 2], "values": [0, 1, 3]}


def build_decoder(model: EncoderDecoder, precision: Precision) -> bytes:
    """The decoder's graph, checked by ONNX's own checker."""
    graph = GraphBuilder()
    add_axes(graph)
    decoder = model.decoder
    products = Products(graph, precision)
    names = decoder.recurrent_names
    sums = _add_token_sums(graph, model, products)
    operand = products.operand(FEED) if model.config.input_feeding else ""
    output = ""
    for i in range(model.config.decoder_layers):
        output = _add_decoder_layer(graph, model, products, i, sums=sums, operand=operand)
        sums, operand = [], products.operand(output)
    readout = _add_readout(graph, model, products, output, operand)  # [B, R]
    if model.config.input_feeding:
        graph.add("Identity", [readout], f"{FEED}_out")
    graph.rename({f"{x}_before": x for x in names} | {f"{x}_new": f"{x}_out" for x in names})
    output_weight = _add_output_weight(graph, model, products)  # [R, V]
    graph.constant("output_bias", array(decoder.output.bias))
    # In three dimensions, as everywhere: a product of two matrices and a bias becomes a Gemm, whose
    # kernel depends on the number of rows.
    graph.add("Unsqueeze", [readout, "axis_1"], "readouts")  # [B, 1, R]
    graph.add("MatMul", ["readouts", output_weight], "output_product")
    graph.add("Add", ["output_product", "output_bias"], "logits")
    graph.add("LogSoftmax", ["logits"], "all_logprobs", axis=-1)
    graph.add("Squeeze", ["all_logprobs", "axis_1"], "logprobs")  # [B, V]
    states = [float_info(name, ["B", size]) for name, size in state_sizes(model).items()]
    after = [float_info(f"{name}_out", ["B", size]) for name, size in state_sizes(model).items()]
    inputs = [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["B"]), *states]
    outputs = [float_info("logprobs", ["B", decoder.vocab_size]), *after]
    if decoder.attention is not None:
        outputs.append(float_info("attention", ["B", "M"]))
    inputs += [float_info(name, ["N", *shape]) for name, shape in memory_shapes(model).items()]
    return finish_model(graph, inputs, outputs)


def _parts(cell: str) -> Sequence[str]:
    """How a cell's sums are split: an LSTM's gates are computed separately, [B, H] each.

    That saves copying them out of one large tensor.
    """
    return LSTM_GATES if cell == "lstm" else ("all",)


def _add_token_sums(graph: GraphBuilder, model: EncoderDecoder, products: Products) -> list[str]:
    """The first layer's sums for each token, biases included: by part, [B, …]."""
    cell = model.config.cell
    decoder, layer = model.decoder, model.decoder.recurrent_layers[0]
    parts = _parts(cell)
    embedding = array(decoder.embedding.weight)  # [V, E]
    weight = array(layer.weight_ih)[:, : model.config.embedding_dim].T  # [E, G·H]
    bias = input_bias(cell, layer)
    if has_target_table(model):
        table = (embedding.astype(np.float64) @ weight + bias).astype(np.float32)
        for part, columns in zip(parts, np.split(table, len(parts), axis=1), strict=True):
            graph.constant(f"{part}_table", columns)
        return [graph.add("Gather", [f"{x}_table", "tokens"], f"{x}_token") for x in parts]
    products.add_stored("embedding_columns", embedding.T)  # [E, V]
    graph.add("Transpose", ["embedding_columns"], "embedding", perm=[1, 0])
    products.add_stored("embedding_weight", weight)
    graph.constant("embedding_bias", bias)
    graph.add("Gather", ["embedding", "tokens"], "embedded")
    graph.add("Unsqueeze", ["embedded", "axis_1"], "embedded_rows")
    graph.add("MatMul", ["embedded_rows", "embedding_weight"], "embedding_products")
    graph.add("Add", ["embedding_products", "embedding_bias"], "embedding_sums")
    sums = graph.add("Squeeze", ["embedding_sums", "axis_1"], "token_sums")
    if len(parts) == 1:
        return [sums]
    names = [f"{part}_token" for part in parts]
    graph.add("Split", [sums], *names, axis=-1, num_outputs=len(parts))
    return names


def _add_output_weight(graph: GraphBuilder, model: EncoderDecoder, products: Products) -> str:
    """The output's weight [R, V]; if it is tied to the embedding, the file holds it once."""
    weight = array(model.decoder.output.weight).T
    if has_target_table(model):
        return graph.constant("output_weight", weight)
    if model.config.tie_embeddings:
        return "embedding_columns"
    return products.add_stored("output_weight", weight)


def _add_decoder_layer(
    graph: GraphBuilder,
    model: EncoderDecoder,
    products: Products,
    i: int,
    *,
    sums: Sequence[str],
    operand: str,
) -> str:
    """One layer's step; `operand` [B, …] holds its bounded inputs, and is empty if it has none.

    `sums` is what the token adds to the first layer, by part; the others add only their biases.
    """
    config, layer = model.config, model.decoder.recurrent_layers[i]
    parts = _parts(config.cell)
    h = products.operand(f"h{i}_before")
    weight_ih, weight_hh = array(layer.weight_ih).T, array(layer.weight_hh).T
    weight_in = weight_ih[config.embedding_dim :] if i == 0 else weight_ih
    if i:
        biases = np.split(input_bias(config.cell, layer), len(parts))
        sums = [graph.constant(f"{x}{i}_bias", b) for x, b in zip(parts, biases, strict=True)]
    if config.cell == "gru":
        if i == 0:
            add_gru_split(graph, config.hidden_size)
        graph.constant(f"candidate_bias{i}", candidate_bias(layer))
        total = sums[0]
        if operand:
            product = products.add_rows(f"input{i}", operand, weight_in)
            total = graph.add("Add", [product, total], f"input{i}_sum")
        recurrent = products.add_rows(f"recurrent{i}", h, weight_hh)
        return add_cell(graph, config.cell, i, total, recurrent)
    weight = np.concatenate([weight_in, weight_hh]) if operand else weight_hh
    whole = products.beside([operand, h], f"operand{i}") if operand else h
    totals = []
    columns = np.split(weight, len(parts), axis=1)
    for part, column, added in zip(parts, columns, sums, strict=True):
        product = products.add_rows(f"{part}{i}", whole, column)
        totals.append(graph.add("Add", [product, added], f"{part}{i}_total"))
    if config.cell == "lstm":
        return add_lstm(graph, i, totals)
    return add_cell(graph, config.cell, i, totals[0])


def _add_readout(
    graph: GraphBuilder, model: EncoderDecoder, products: Products, h: str, operand: str
) -> str:
    """tanh(W [context; h]) [B, R]; the context's part is a weighted sum of the memory's values."""
    decoder = model.decoder
    attended = 0 if decoder.attention is None else 2 * model.config.encoder_hidden_size
    graph.constant("readout_bias", array(decoder.readout.bias))
    own = products.add_rows("readout", operand, array(decoder.readout.weight)[:, attended:].T)
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
    graph.add("Shape", ["inside"], "sources", start=0, end=1)
    graph.add("Shape", ["inside"], "positions", start=1, end=2)
    graph.constant("rest", np.array([-1], np.int64))
    graph.constant("one_row", np.array([1], np.int64))
    graph.constant("hidden_size", np.array([model.config.hidden_size], np.int64))
    graph.constant("readout_size", np.array([model.decoder.readout_size], np.int64))
    graph.add("Concat", ["sources", "rest", "one_row", "hidden_size"], "query_shape", axis=0)
    graph.add("Concat", ["rest", "positions"], "attention_shape", axis=0)
    graph.add("Concat", ["rest", "readout_size"], "context_shape", axis=0)
    if attention.kind == "additive":
        scores = _add_additive_scores(graph, attention.query, attention.score, h)
    else:
        queries = graph.add("Reshape", [h, "query_shape"], "queries")  # [N, K, 1, H]
        scores = _add_row_products(graph, queries, "keys", "scores")  # [.., N, K, 1, M]
    graph.constant("within", np.array(1.0, np.float32))
    graph.constant("far_down", np.array(FAR_DOWN, np.float32))
    graph.constant("axes_1_2", np.array([1, 2], np.int64))
    graph.add("Sub", ["inside", "within"], "outside")  # [N, M] -1 past the source's end
    graph.add("Mul", ["outside", "far_down"], "penalty")
    graph.add("Unsqueeze", ["penalty", "axes_1_2"], "penalty_rows")  # [N, 1, 1, M]
    graph.add("Add", [scores, "penalty_rows"], "masked_scores")
    graph.add("Softmax", ["masked_scores"], "weights", axis=-1)
    graph.add("Reshape", ["weights", "attention_shape"], "attention")  # [B, M]
    _add_row_products(graph, "weights", "values", "contexts")  # [.., N, K, 1, R]
    return graph.add("Reshape", ["contexts", "context_shape"], "context")


def _add_row_products(graph: GraphBuilder, rows: str, memory: str, name: str) -> str:
    """Each of `rows` [.., N, K, 1, n] times its source's `memory` [N, n, m].

    Each row has a product of its own, so that its bits do not depend on K: onnxruntime adds up a
    single row in a different order than several. The memory has more axes than the rows, which
    keeps onnxruntime from merging the K rows of a single source into one product.
    """
    graph.constant(f"{memory}_axes", np.array(_MEMORY_AXES[memory], np.int64))
    wide = graph.add("Unsqueeze", [memory, f"{memory}_axes"], f"{memory}_wide")
    return graph.add("MatMul", [rows, wide], name)


def _add_additive_scores(graph: GraphBuilder, query: nn.Linear, score: nn.Linear, h: str) -> str:
    """u·tanh(W_h h + keys) [N, K, 1, M]."""
    graph.add("Unsqueeze", [h, "axis_1"], "query_rows")
    weight, bias = array(query.weight).T, array(query.bias)
    projected = affine(graph, "query", "query_rows", weight, bias)  # [B, 1, A]
    graph.add("Reshape", [projected, "query_shape"], "queries")  # [N, K, 1, A]
    graph.add("Unsqueeze", ["keys", "axis_1"], "keys_wide")  # [N, 1, M, A]
    graph.add("Add", ["queries", "keys_wide"], "score_sums")
    graph.add("Tanh", ["score_sums"], "score_inputs")
    graph.constant("score_weight", array(score.weight).T)
    graph.add("MatMul", ["score_inputs", "score_weight"], "score_columns")  # [N, K, M, 1]
    return graph.add("Transpose", ["score_columns"], "scores", perm=[0, 1, 3, 2])
