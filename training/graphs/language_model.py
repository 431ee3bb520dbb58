"""The exported graphs: explicit states, batch on axis 0, log-probabilities out.

B batch, T time, V vocabulary, E embedding, H hidden, G gates.

`sequence`: inputs `tokens` [B, T], `lengths` [B], `targets` [B, T] and the states [B, H]; outputs
`target_logprobs` [B, T], `logprobs` [B, T, V] and the states after each row's last token. A caller
that fetches only `target_logprobs` moves B·T numbers instead of B·T·V.
`step`: inputs `tokens` [B] and the states; outputs `logprobs` [B, V] and the states after.

In single precision LSTM and GRU are ONNX's own operators, which gave bit-identical rows for every
batch size, row position, chunking and raggedness tried; the sequence graph serves single steps too.
onnxruntime's RNN operator did not (a batch of one uses another matrix kernel), so the tanh RNN is a
Scan over MatMul and Tanh, which did and is also faster in batches. In eight bits every cell is
composed of small operators, and a step graph avoids the cost of a Scan of one step.
"""

import numpy as np
from onnx import TensorProto, helper

from service.bundle.manifest import Precision, Role
from training.graphs.builder import (
    GraphBuilder,
    ValueInfo,
    add_axes,
    array,
    finish_model,
    float_info,
    reordered_gates,
)
from training.graphs.cells import add_scan, add_step, float_rnn_step, int8_step
from training.networks.language_model import LanguageModel
from training.networks.recurrent import STATE_NAMES

# The graphs that a bundle holds, by precision.
ROLES: dict[Precision, tuple[Role, ...]] = {"fp32": ("sequence",), "int8": ("sequence", "step")}


def build(model: LanguageModel, precision: Precision = "fp32", role: Role = "sequence") -> bytes:
    """One graph of a model, checked by ONNX's own checker. Raises ValueError outside of `ROLES`."""
    if role not in ROLES[precision]:
        raise ValueError(f"there is no {role} graph in {precision}")
    graph = GraphBuilder()
    add_axes(graph)
    if role == "sequence":
        _add_sequence(graph, model, precision)
        inputs, outputs = _sequence_interface(model)
    else:
        _add_step_graph(graph, model)
        inputs, outputs = _step_interface(model)
    for name in model.state_names:
        inputs.append(float_info(name, ["B", model.config.hidden_size]))
        outputs.append(float_info(f"{name}_out", ["B", model.config.hidden_size]))
    return finish_model(graph, inputs, outputs)


def _add_sequence(graph: GraphBuilder, model: LanguageModel, precision: Precision) -> None:
    graph.add("Transpose", ["tokens"], "tokens_by_time", perm=[1, 0])  # [T, B]
    if precision == "int8":
        outputs_by_time = add_scan(graph, model, int8_step(graph, model))
    elif model.config.cell == "rnn":
        outputs_by_time = add_scan(graph, model, float_rnn_step(graph, model))
    else:
        outputs_by_time = _operator_layers(graph, model)
    graph.add("Transpose", [outputs_by_time], "outputs", perm=[1, 0, 2])  # [B, T, H]
    graph.add("LogSoftmax", [_add_logits(graph, model, "outputs")], "logprobs", axis=-1)
    graph.add("Unsqueeze", ["targets", "axis_2"], "target_column")  # [B, T, 1]
    graph.add("GatherElements", ["logprobs", "target_column"], "picked", axis=2)
    graph.add("Squeeze", ["picked", "axis_2"], "target_logprobs")  # [B, T]


def _add_step_graph(graph: GraphBuilder, model: LanguageModel) -> None:
    output = add_step(graph, model, int8_step(graph, model))  # [B, H]
    # A product of two matrices would become a Gemm, whose kernel depends on the rows: in three
    # dimensions it is the sequence graph's own.
    graph.add("Unsqueeze", [output, "axis_1"], "outputs")  # [B, 1, H]
    graph.add("LogSoftmax", [_add_logits(graph, model, "outputs")], "all_logprobs", axis=-1)
    graph.add("Squeeze", ["all_logprobs", "axis_1"], "logprobs")  # [B, V]


def _add_logits(graph: GraphBuilder, model: LanguageModel, outputs: str) -> str:
    graph.constant("output_weight", array(model.output.weight).T)  # [H, V]
    graph.constant("output_bias", array(model.output.bias))  # [V]
    products = graph.add("MatMul", [outputs, "output_weight"], "products")
    return graph.add("Add", [products, "output_bias"], "logits")


def _sequence_interface(model: LanguageModel) -> tuple[list[ValueInfo], list[ValueInfo]]:
    inputs = [
        helper.make_tensor_value_info("tokens", TensorProto.INT64, ["B", "T"]),
        helper.make_tensor_value_info("lengths", TensorProto.INT32, ["B"]),
        helper.make_tensor_value_info("targets", TensorProto.INT64, ["B", "T"]),
    ]
    outputs = [
        float_info("target_logprobs", ["B", "T"]),
        float_info("logprobs", ["B", "T", model.vocab_size]),
    ]
    return inputs, outputs


def _step_interface(model: LanguageModel) -> tuple[list[ValueInfo], list[ValueInfo]]:
    inputs = [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["B"])]
    return inputs, [float_info("logprobs", ["B", model.vocab_size])]


def _operator_layers(graph: GraphBuilder, model: LanguageModel) -> str:
    """ONNX's LSTM or GRU, one operator a layer; returns the last layer's outputs [T, B, H]."""
    config = model.config
    graph.constant("embedding", array(model.embedding.weight))  # [V, E]
    x = graph.add("Gather", ["embedding", "tokens_by_time"], "embedded")  # [T, B, E]
    attributes = {"linear_before_reset": 1} if config.cell == "gru" else {}
    for i, layer in enumerate(model.recurrent_layers):
        names = [f"{name}{i}" for name in STATE_NAMES[config.cell]]
        weights = [
            reordered_gates(config.cell, array(w)) for w in (layer.weight_ih, layer.weight_hh)
        ]
        biases = [reordered_gates(config.cell, array(b)) for b in (layer.bias_ih, layer.bias_hh)]
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
