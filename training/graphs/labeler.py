"""A labeler's graph: texts to the log-probabilities of their labels.

N texts, S places (bos, the tokens and eos), P answers (1, or S), E embedding, H hidden, D width of
the outputs, L labels, V vocabulary.

Inputs `tokens` [N, S] and `lengths` [N]; output `logprobs` [N, L] of whole texts, or [N, S, L] of
each place. A classifier that reads forward has the states [N, H] as well, and an answer after each
place. A temperature is part of the weights.

No operator adds up over texts or over places, except attention: its sums depend on the number of
places in the last bits, so only texts of one padded length are read together.
"""

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto, helper
from torch import nn

from service.bundle.labeler import FORBIDDEN
from service.bundle.manifest import Precision
from training.config import LabelerNetworkConfig
from training.graphs.builder import GraphBuilder, add_axes, array, finish_model, float_info
from training.graphs.cells import add_time_mask
from training.graphs.forward import add_forward
from training.graphs.nodes import add_inside, affine
from training.graphs.products import Products
from training.graphs.stack import Stack, add_stack
from training.networks.encoder import BidirectionalLayers
from training.networks.labeler import POOLED, AttentionPooling, Labeler
from training.networks.recurrent import RecurrentLayer, RecurrentLayers

FAR_DOWN = -1e30  # the score of a place past a text's end, so that exp gives an exact zero


def build_labeler(model: Labeler, precision: Precision, *, several: bool = False) -> bytes:
    """The labeler's graph, checked by ONNX's own checker.

    With `several`, each label has a probability of its own: log sigmoid of its logit.
    """
    graph = GraphBuilder()
    add_axes(graph)
    layers = model.layers
    if isinstance(layers, BidirectionalLayers):
        x = _add_read(graph, model, layers, precision)
    else:
        x = _add_read_on(graph, model, layers, precision)
    output = model.output
    logits = affine(graph, "output", x, array(output.weight).T, array(output.bias))  # [N, P, L]
    logits = _add_mask(graph, model, logits)
    whole = "logprobs" if model.labels_places else "text_logprobs"
    if several:
        _add_log_sigmoid(graph, logits, whole)
    else:
        graph.add("LogSoftmax", [logits], whole, axis=-1)
    if not model.labels_places:
        graph.add("Squeeze", [whole, "axis_1"], "logprobs")  # [N, L]
    places: list[int | str] = ["S"] if model.labels_places else []
    states = [float_info(name, ["N", model.config.hidden_size]) for name in model.state_names]
    after = [
        float_info(f"{name}_out", ["N", model.config.hidden_size]) for name in model.state_names
    ]
    inputs = [
        helper.make_tensor_value_info("tokens", TensorProto.INT64, ["N", "S"]),
        helper.make_tensor_value_info("lengths", TensorProto.INT32, ["N"]),
        *states,
    ]
    outputs = [float_info("logprobs", ["N", *places, model.head.num_labels]), *after]
    return finish_model(graph, inputs, outputs)


def _add_read(
    graph: GraphBuilder, model: Labeler, layers: BidirectionalLayers, precision: Precision
) -> str:
    """What the output layer reads of texts that are read from both ends, [N, P, D]."""
    products = Products(graph, precision)
    graph.add("Cast", ["lengths"], "lengths_64", to=TensorProto.INT64)
    tokens = graph.add("Transpose", ["tokens"], "tokens_by_time", perm=[1, 0])  # [S, N]
    inside = add_inside(graph, tokens, "lengths_64", "text")  # [S, N]
    stack = Stack(layers=layers.bidirectional_layers, embedding=model.embedding)
    is_maximum = model.head.pooling == "max"
    x, last = add_stack(
        graph,
        products,
        precision,
        stack,
        x=tokens,
        lengths="lengths_64",
        inside=inside,
        pooled=is_maximum,
    )
    if model.attention is not None:
        return _add_attention(graph, products, model.attention, x, inside)
    if model.head.pooling is None:
        rows = graph.add("Transpose", [x], "rows", perm=[1, 0, 2])  # [N, S, D]
        return products.add_numbers(rows, "row_numbers")
    # Else what each direction has read last.
    pooled = x if is_maximum else products.beside(last, "last")
    # In three dimensions: a product of two matrices and a bias becomes a Gemm, whose kernel depends
    # on the number of rows.
    graph.add("Unsqueeze", [pooled, "axis_1"], "pooled_rows")  # [N, 1, D]
    return products.add_numbers("pooled_rows", "pooled_numbers")


def _add_attention(
    graph: GraphBuilder, products: Products, attention: AttentionPooling, x: str, inside: str
) -> str:
    """Sums of `x` [S, N, D] with the weights softmax(u · tanh(W h + b)), [N, 1, D].

    A text's places are always summed as one row, whose bits depend on the number of places alone.
    """
    rows = graph.add("Transpose", [x], "rows", perm=[1, 0, 2])  # [N, S, D]
    key, query = attention.key, attention.query
    product = products.add_positions("key", rows, array(key.weight).T)  # [N, S, A]
    graph.constant("key_bias", array(key.bias))
    graph.add("Add", [product, "key_bias"], "key_sum")
    graph.add("Tanh", ["key_sum"], "keys")
    graph.constant("query", array(query)[:, None])
    graph.add("MatMul", ["keys", "query"], "score_columns")  # [N, S, 1]
    graph.add("Transpose", ["score_columns"], "scores", perm=[0, 2, 1])  # [N, 1, S]
    graph.constant("far_down", np.array(FAR_DOWN, np.float32))
    graph.add("Transpose", [inside], "inside_rows", perm=[1, 0])
    graph.add("Unsqueeze", ["inside_rows", "axis_1"], "inside_row")  # [N, 1, S]
    graph.add("Where", ["inside_row", "scores", "far_down"], "masked_scores")
    graph.add("Softmax", ["masked_scores"], "weights", axis=-1)
    return graph.add("MatMul", ["weights", products.add_numbers(rows, "values")], "pooled_rows")


@dataclass(frozen=True, slots=True)
class ForwardPart:
    """The layers of a classifier that reads forward, without its running maximum."""

    config: LabelerNetworkConfig
    embedding: nn.Embedding
    layers: RecurrentLayers

    @property
    def recurrent_layers(self) -> list[RecurrentLayer]:
        """First to last."""
        return self.layers.recurrent_layers

    @property
    def state_names(self) -> list[str]:
        """Names of the layers' states, in order."""
        return self.layers.state_names


def _add_read_on(
    graph: GraphBuilder, model: Labeler, layers: RecurrentLayers, precision: Precision
) -> str:
    """What the output layer reads after each place, [N, S, H]; writes `<state>_out`."""
    own = ForwardPart(model.config, model.embedding, layers)
    x = add_forward(graph, own, precision)  # [N, S, H]
    if model.head.pooling == "last":
        return x
    if "inside_by_time" not in {name for node in graph.nodes for name in node.output}:
        add_time_mask(graph)
    return _add_running_maximum(graph, x, model.config.hidden_size)


def _add_running_maximum(graph: GraphBuilder, x: str, hidden: int) -> str:
    """Each feature's maximum so far, [N, S, H], of `x` [N, S, H] and the state before.

    Past a text's length the state no longer changes.
    """
    graph.add("Transpose", [x], "outputs_again", perm=[1, 0, 2])  # [S, N, H]
    body = GraphBuilder()
    body.add("Max", ["maximum_before", "output"], "maximum")
    body.add("Where", ["inside", "maximum", "maximum_before"], "maximum_next")
    body.add("Identity", ["maximum_next"], "maximum_here")
    inside = helper.make_tensor_value_info("inside", TensorProto.BOOL, ["N", 1])
    vectors = {
        name: float_info(name, ["N", hidden])
        for name in ("maximum_before", "output", "maximum_next", "maximum_here")
    }
    graph.add(
        "Scan",
        [POOLED, "outputs_again", "inside_by_time"],
        f"{POOLED}_out",
        "maxima_by_time",
        num_scan_inputs=2,
        body=helper.make_graph(
            body.nodes,
            "maximum_step",
            [vectors["maximum_before"], vectors["output"], inside],
            [vectors["maximum_next"], vectors["maximum_here"]],
        ),
    )
    return graph.add("Transpose", ["maxima_by_time"], "maxima", perm=[1, 0, 2])  # [N, S, H]


def _add_mask(graph: GraphBuilder, model: Labeler, logits: str) -> str:
    """The logits [N, S, L], with FORBIDDEN added to those of labels that a token cannot have."""
    if model.allowed is None:
        return logits
    graph.constant("allowed", model.allowed.cpu().numpy())  # [V, L]
    graph.constant("nothing", np.array(0.0, np.float32))
    graph.constant("forbidden", np.array(FORBIDDEN, np.float32))
    graph.add("Gather", ["allowed", "tokens"], "allowed_here")  # [N, S, L]
    graph.add("Where", ["allowed_here", "nothing", "forbidden"], "penalty")
    return graph.add("Add", [logits, "penalty"], "masked_logits")


def _add_log_sigmoid(graph: GraphBuilder, logits: str, output: str) -> None:
    """log sigmoid of `logits` [N, P, L]: the log-softmax of each beside a zero.

    onnxruntime computes a LogSoftmax row by row; the bits of Log and Softplus depend on a number's
    place in the tensor.
    """
    graph.constant("axis_last", np.array([-1], np.int64))
    graph.constant("beside", np.array([0, 0, 0, 0, 0, 0, 0, 1], np.int64))
    graph.add("Unsqueeze", [logits, "axis_last"], "logit_columns")  # [N, P, L, 1]
    pairs = graph.add("Pad", ["logit_columns", "beside"], "logit_pairs")  # [N, P, L, 2]
    graph.add("LogSoftmax", [pairs], "both_logprobs", axis=-1)
    graph.add("Split", ["both_logprobs"], "own_logprobs", "other_logprobs", axis=-1, num_outputs=2)
    graph.add("Squeeze", ["own_logprobs", "axis_last"], output)
