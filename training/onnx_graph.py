"""The exported graph: explicit states, batch on axis 0, log-probabilities out.

B batch, T time, V vocabulary, E embedding, H hidden, G gates.

Inputs `tokens` [B, T], `lengths` [B], `targets` [B, T] and the states [B, H]; outputs
`target_logprobs` [B, T], `logprobs` [B, T, V] and the states after each row's last token. A caller
that fetches only `target_logprobs` moves B·T numbers and not B·T·V.

LSTM and GRU use ONNX's own operators, which gave bit-identical rows for every batch size, row
position, chunking and raggedness tried. onnxruntime's RNN operator does not (a batch of one takes
another matrix kernel), so the tanh RNN is a Scan over MatMul and Tanh, which does and is also
faster in batches.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from training.language_model import STATE_NAMES, LanguageModel

OPSET = 18
IR_VERSION = 9

FloatArray: TypeAlias = npt.NDArray[np.float32]


class _Graph:
    """Nodes and constants under construction."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, operator: str, inputs: Sequence[str], *outputs: str, **attributes: Any) -> str:
        """Append a node and return its first output's name."""
        self.nodes.append(helper.make_node(operator, inputs, outputs, **attributes))
        return outputs[0]

    def constant(self, name: str, value: npt.NDArray[np.generic]) -> str:
        """Append an initializer and return its name."""
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name


def build(model: LanguageModel) -> bytes:
    """The fp32 graph of a model, checked by ONNX's own checker."""
    config = model.config
    hidden, vocab = config.hidden_size, model.vocab_size
    graph = _Graph()
    graph.constant("axis_0", np.array([0], np.int64))
    graph.constant("axis_1", np.array([1], np.int64))
    graph.constant("axis_2", np.array([2], np.int64))
    graph.add("Transpose", ["tokens"], "tokens_by_time", perm=[1, 0])  # [T, B]
    add_layers = _scan_layers if config.cell == "rnn" else _operator_layers
    outputs_by_time = add_layers(graph, model)  # [T, B, H]
    graph.add("Transpose", [outputs_by_time], "outputs", perm=[1, 0, 2])  # [B, T, H]
    graph.constant("output_weight", _array(model.output.weight).T)  # [H, V]
    graph.constant("output_bias", _array(model.output.bias))  # [V]
    graph.add("MatMul", ["outputs", "output_weight"], "products")
    graph.add("Add", ["products", "output_bias"], "logits")
    graph.add("LogSoftmax", ["logits"], "logprobs", axis=-1)  # [B, T, V]
    graph.add("Unsqueeze", ["targets", "axis_2"], "target_column")  # [B, T, 1]
    graph.add("GatherElements", ["logprobs", "target_column"], "picked", axis=2)
    graph.add("Squeeze", ["picked", "axis_2"], "target_logprobs")  # [B, T]
    inputs = [
        helper.make_tensor_value_info("tokens", TensorProto.INT64, ["B", "T"]),
        helper.make_tensor_value_info("lengths", TensorProto.INT32, ["B"]),
        helper.make_tensor_value_info("targets", TensorProto.INT64, ["B", "T"]),
    ]
    outputs = [
        helper.make_tensor_value_info("target_logprobs", TensorProto.FLOAT, ["B", "T"]),
        helper.make_tensor_value_info("logprobs", TensorProto.FLOAT, ["B", "T", vocab]),
    ]
    for name in model.state_names:
        inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", hidden]))
        outputs.append(
            helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, ["B", hidden])
        )
    proto = helper.make_model(
        helper.make_graph(graph.nodes, "unroll", inputs, outputs, graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="unroll",
    )
    onnx.checker.check_model(proto, full_check=True)
    data: bytes = proto.SerializeToString()
    return data


def _operator_layers(graph: _Graph, model: LanguageModel) -> str:
    """ONNX's LSTM or GRU, one operator a layer; returns the last layer's outputs [T, B, H]."""
    config = model.config
    graph.constant("embedding", _array(model.embedding.weight))  # [V, E]
    x = graph.add("Gather", ["embedding", "tokens_by_time"], "embedded")  # [T, B, E]
    # ONNX orders the gates otherwise than torch: i o f c for i f g o, and z r h for r z n.
    order = (0, 3, 1, 2) if config.cell == "lstm" else (1, 0, 2)
    attributes = {"linear_before_reset": 1} if config.cell == "gru" else {}
    for i, layer in enumerate(model.recurrent_layers):
        names = [f"{name}{i}" for name in STATE_NAMES[config.cell]]
        weights = [_reorder(_array(w), order) for w in (layer.weight_ih, layer.weight_hh)]
        biases = [_reorder(_array(b), order) for b in (layer.bias_ih, layer.bias_hh)]
        parameters = [
            graph.constant(f"weight_ih{i}", weights[0][None]),  # [1, G·H, E]
            graph.constant(f"weight_hh{i}", weights[1][None]),  # [1, G·H, H]
            graph.constant(f"bias{i}", np.concatenate(biases)[None]),  # [1, 2·G·H]
        ]
        before = [graph.add("Unsqueeze", [name, "axis_0"], f"{name}_in") for name in names]
        after = [f"{name}_after" for name in names]
        graph.add(
            config.cell.upper(),
            [x, *parameters, "lengths", *before],
            f"all{i}",
            *after,
            hidden_size=config.hidden_size,
            **attributes,
        )
        for name in names:
            graph.add("Squeeze", [f"{name}_after", "axis_0"], f"{name}_out")
        x = graph.add("Squeeze", [f"all{i}", "axis_1"], f"outputs{i}")  # [T, B, H]
    return x


def _scan_layers(graph: _Graph, model: LanguageModel) -> str:
    """The tanh RNN as one Scan over all layers; returns the last layer's outputs [T, B, H]."""
    hidden = model.config.hidden_size
    layers = model.recurrent_layers
    # The first layer's input product and its biases depend on the character alone: one table.
    first = layers[0]
    table = (
        _array(model.embedding.weight).astype(np.float64) @ _array(first.weight_ih).T
        + _array(first.bias_ih)
        + _array(first.bias_hh)
    )
    graph.constant("table", table.astype(np.float32))  # [V, H]
    graph.add("Gather", ["table", "tokens_by_time"], "projected")  # [T, B, H]
    _add_time_mask(graph)
    body = _Graph()
    x = "x"
    for i, layer in enumerate(layers):
        graph.constant(f"weight_hh{i}", _array(layer.weight_hh).T)  # [H, H]
        if i:
            graph.constant(f"weight_ih{i}", _array(layer.weight_ih).T)
            graph.constant(f"bias{i}", _array(layer.bias_ih) + _array(layer.bias_hh))
            product = body.add("MatMul", [x, f"weight_ih{i}"], f"input_product{i}")
            x = body.add("Add", [product, f"bias{i}"], f"input{i}")
        recurrent = body.add("MatMul", [f"h{i}_before", f"weight_hh{i}"], f"recurrent{i}")
        total = body.add("Add", [recurrent, x], f"sum{i}")
        x = body.add("Tanh", [total], f"h{i}_new")
        # Past a row's length its state stays as it is.
        body.add("Where", ["inside", x, f"h{i}_before"], f"h{i}_next")
    body.add("Identity", [x], "y")

    def vector(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", hidden])

    states = [f"h{i}" for i in range(len(layers))]
    subgraph = helper.make_graph(
        body.nodes,
        "cell",
        [
            *(vector(f"{name}_before") for name in states),
            vector("x"),
            helper.make_tensor_value_info("inside", TensorProto.BOOL, ["B", 1]),
        ],
        [*(vector(f"{name}_next") for name in states), vector("y")],
    )
    graph.add(
        "Scan",
        [*states, "projected", "mask"],
        *(f"{name}_out" for name in states),
        "outputs_by_time",
        num_scan_inputs=2,
        body=subgraph,
    )
    return "outputs_by_time"


def _add_time_mask(graph: _Graph) -> None:
    """`mask` [T, B, 1]: true where time lies inside the row's length."""
    graph.constant("zero", np.array(0, np.int64))
    graph.constant("one", np.array(1, np.int64))
    graph.add("Shape", ["tokens_by_time"], "time_shape", start=0, end=1)
    graph.add("Squeeze", ["time_shape", "axis_0"], "time")
    graph.add("Range", ["zero", "time", "one"], "times")
    graph.add("Unsqueeze", ["times", "axis_1"], "times_column")  # [T, 1]
    graph.add("Cast", ["lengths"], "lengths_64", to=TensorProto.INT64)
    graph.add("Less", ["times_column", "lengths_64"], "inside_length")  # [T, B]
    graph.add("Unsqueeze", ["inside_length", "axis_2"], "mask")


def _array(parameter: Tensor) -> FloatArray:
    return parameter.detach().cpu().numpy()


def _reorder(stacked: FloatArray, order: Sequence[int]) -> FloatArray:
    """Gates of a stacked parameter [G·H, …] in another order."""
    gates = np.split(stacked, len(order))
    return np.concatenate([gates[i] for i in order])
