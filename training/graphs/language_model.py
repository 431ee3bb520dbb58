"""The exported graphs: explicit states, batch on axis 0, log-probabilities out.

B batch, T time, V vocabulary, E embedding, H hidden, G gates.

`sequence`: inputs `tokens` [B, T], `lengths` [B], `targets` [B, T] and the states [B, H]; outputs
`target_logprobs` [B, T], `logprobs` [B, T, V] and the states after each row's last token. A caller
that fetches only `target_logprobs` moves B·T numbers instead of B·T·V.
`step`: inputs `tokens` [B] and the states; outputs `logprobs` [B, V] and the states after.

An n-gram alone has both graphs in single precision. A mixture's graph holds its parts side by side:
log (sum of w p) of their probabilities, to the power of the exponent and normalized.
"""

from collections.abc import Sequence
from dataclasses import dataclass

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
)
from training.graphs.cells import add_step, int8_step
from training.graphs.forward import add_forward
from training.graphs.ngram import add_sequence as add_ngram_sequence
from training.graphs.ngram import add_step as add_ngram_step
from training.networks.language_model import LanguageModel
from training.networks.mixture import AnyLanguageModel, least_probability, part_prefix
from training.networks.ngram import NGram

# The graphs in a bundle of any model with a network, by precision.
ROLES: dict[Precision, tuple[Role, ...]] = {"fp32": ("sequence",), "int8": ("sequence", "step")}
_NGRAM_ROLES: dict[Precision, tuple[Role, ...]] = {"fp32": ("sequence", "step")}
# What all parts of a mixture share; every other name belongs to one of them.
_SHARED = ("tokens", "lengths", "axis_0", "axis_1", "axis_2")
# onnxruntime's Log computes the numbers after the last whole vector in another way. Without such a
# remainder, a result does not depend on its place.
_LOG_BLOCK = 16
NGRAM_PROBS = "ngram_probs"


@dataclass(frozen=True, slots=True)
class _Part:
    """A network in the graph; in a step graph T is 1."""

    hidden: str  # [B, T, H] the last layer's outputs
    logits: str  # [B, T, V]


def roles(model: AnyLanguageModel) -> dict[Precision, tuple[Role, ...]]:
    """The graphs that a bundle of this model holds, by precision."""
    return ROLES if model.networks else _NGRAM_ROLES


def build(
    model: AnyLanguageModel,
    precision: Precision = "fp32",
    role: Role = "sequence",
    *,
    adapting: bool = False,
) -> bytes:
    """One graph of a model, checked by ONNX's own checker.

    With `adapting`, what an adapting graph reads are further outputs after the log-probabilities:
    `hidden<i>` [B, T, H] and `logits<i>` [B, T, V] of every network and, with an n-gram,
    `ngram_probs` [B, T, V]; a step's are without T. Raises ValueError outside of `roles`.
    """
    if role not in roles(model).get(precision, ()):
        raise ValueError(f"there is no {role} graph in {precision}")
    graph = GraphBuilder()
    add_axes(graph)
    is_step = role == "step"
    parts = [_add_network(graph, i, x, precision, role) for i, x in enumerate(model.networks)]
    ngram = None if model.ngram is None else _add_ngram(graph, model.ngram, is_step=is_step)
    mixed = "all_logprobs" if is_step else "logprobs"  # [B, T, V]
    if parts and ngram is None and len(parts) == 1:
        graph.add("LogSoftmax", [parts[0].logits], mixed, axis=-1)
    else:
        _add_mixture(graph, model, parts, ngram, mixed)
    inputs, outputs = _interface(model, role)
    if is_step:
        graph.add("Squeeze", [mixed, "axis_1"], "logprobs")  # [B, V]
    else:
        add_picked(graph)
    if adapting:
        outputs += _add_adapting_outputs(graph, model, parts, is_step=is_step)
    for name, shape in zip(model.state_names, model.state_shapes, strict=True):
        inputs.append(float_info(name, ["B", *shape]))
        outputs.append(float_info(f"{name}_out", ["B", *shape]))
    return finish_model(graph, inputs, outputs)


def _add_network(
    graph: GraphBuilder, i: int, model: LanguageModel, precision: Precision, role: Role
) -> _Part:
    """Network i of a mixture, or the only one."""
    own = graph if i == 0 else GraphBuilder()
    add = add_forward if role == "sequence" else _add_step
    hidden = add(own, model, precision)
    part = _Part(hidden, _add_logits(own, model, hidden))
    if i == 0:
        return part
    prefix = part_prefix(i)
    graph.append(own, prefix, _SHARED)
    return _Part(prefix + part.hidden, prefix + part.logits)


def _add_step(graph: GraphBuilder, model: LanguageModel, _: Precision) -> str:
    output = add_step(graph, model, int8_step(graph, model))  # [B, H]
    # A product of two matrices would become a Gemm, whose kernel depends on the rows: in three
    # dimensions it is the sequence graph's own.
    return graph.add("Unsqueeze", [output, "axis_1"], "outputs")  # [B, 1, H]


def _add_logits(graph: GraphBuilder, model: LanguageModel, outputs: str) -> str:
    graph.constant("output_weight", array(model.output.weight).T)  # [H, V]
    graph.constant("output_bias", array(model.output.bias))  # [V]
    products = graph.add("MatMul", [outputs, "output_weight"], "products")
    return graph.add("Add", [products, "output_bias"], "logits")


def _add_ngram(graph: GraphBuilder, model: NGram, *, is_step: bool) -> str:
    """The n-gram's probabilities [B, T, V]; in a step graph T is 1."""
    add = add_ngram_step if is_step else add_ngram_sequence
    found = add(graph, model)
    if found != NGRAM_PROBS:
        graph.add("Identity", [found], NGRAM_PROBS)
    if not is_step:
        return NGRAM_PROBS
    return graph.add("Unsqueeze", [NGRAM_PROBS, "axis_1"], "ngram_probs_row")


def _add_mixture(
    graph: GraphBuilder,
    model: AnyLanguageModel,
    parts: Sequence[_Part],
    ngram: str | None,
    output: str,
) -> None:
    """The weighted sum of all parts' probabilities, and its logarithm to `output` [B, T, V]."""
    probs = [
        graph.add("Softmax", [x.logits], f"network_probs{i}", axis=-1) for i, x in enumerate(parts)
    ]
    probs += [] if ngram is None else [ngram]
    total = add_weighted_sum(graph, probs, model.weights)
    add_logprobs(graph, total, model.vocab_size, model.exponent, output)


def add_weighted_sum(graph: GraphBuilder, probs: Sequence[str], weights: Sequence[float]) -> str:
    """The sum of `probs` [B, T, V], each times its weight; of a single one, itself."""
    total = probs[0]
    if len(probs) > 1:
        for i, (name, weight) in enumerate(zip(probs, weights, strict=True)):
            graph.constant(f"mixture_weight{i}", np.array(weight, np.float32))
            share = graph.add("Mul", [name, f"mixture_weight{i}"], f"mixture_share{i}")
            total = graph.add("Add", [total, share], f"mixture{i}") if i else share
    return total


def add_picked(graph: GraphBuilder) -> None:
    """`target_logprobs` [B, T]: those of `targets` [B, T] among `logprobs` [B, T, V]."""
    graph.add("Unsqueeze", ["targets", "axis_2"], "target_column")  # [B, T, 1]
    graph.add("GatherElements", ["logprobs", "target_column"], "picked", axis=2)
    graph.add("Squeeze", ["picked", "axis_2"], "target_logprobs")  # [B, T]


def add_logprobs(
    graph: GraphBuilder, probs: str, vocab_size: int, exponent: float | None, output: str
) -> None:
    """log p of `probs` [B, T, V], which are raised to `exponent` and normalized, to `output`.

    Without an exponent they are taken as they are. No number depends on another row's.
    """
    graph.constant("least_probability", np.array(least_probability(exponent), np.float32))
    above = graph.add("Max", [probs, "least_probability"], "probs_above_least")
    padding = -vocab_size % _LOG_BLOCK
    graph.constant("log_padding", np.array([0, 0, 0, 0, 0, padding], np.int64))
    graph.constant("log_of_padding", np.array(1.0, np.float32))
    graph.constant("log_start", np.array([0], np.int64))
    graph.constant("log_end", np.array([vocab_size], np.int64))
    whole = graph.add("Pad", [above, "log_padding", "log_of_padding"], "probs_in_blocks")
    logs = graph.add("Log", [whole], "logs_in_blocks")
    if exponent is None:
        graph.add("Slice", [logs, "log_start", "log_end", "axis_2"], output)
        return
    own = graph.add("Slice", [logs, "log_start", "log_end", "axis_2"], "logs")
    if exponent != 1.0:
        graph.constant("exponent", np.array(exponent, np.float32))
        own = graph.add("Mul", [own, "exponent"], "powers")
    graph.add("LogSoftmax", [own], output, axis=-1)


def _add_adapting_outputs(
    graph: GraphBuilder,
    model: AnyLanguageModel,
    parts: Sequence[_Part],
    *,
    is_step: bool,
) -> list[ValueInfo]:
    values: list[tuple[str, str, int]] = []
    for i, (part, network) in enumerate(zip(parts, model.networks, strict=True)):
        values.append((part.hidden, f"hidden{i}", network.config.hidden_size))
        values.append((part.logits, f"logits{i}", model.vocab_size))
    for value, name, _ in values:
        if is_step:
            graph.add("Squeeze", [value, "axis_1"], name)
        else:
            graph.add("Identity", [value], name)
    values += [] if model.ngram is None else [("", NGRAM_PROBS, model.vocab_size)]
    return [float_info(name, ["B", n] if is_step else ["B", "T", n]) for _, name, n in values]


def _interface(model: AnyLanguageModel, role: Role) -> tuple[list[ValueInfo], list[ValueInfo]]:
    """Inputs and outputs before the states."""
    if role == "step":
        inputs = [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["B"])]
        return inputs, [float_info("logprobs", ["B", model.vocab_size])]
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
