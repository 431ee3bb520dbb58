"""The adapting graphs: what `networks.adapting` computes, from another graph's outputs.

B batch, T time, V vocabulary, H hidden, R numbers of a feature, C slots of a chunk, N chunks.

`adapt`: inputs `tokens` [B, T], `lengths` [B], `targets` [B, T]; of each network i `hidden<i>`
[B, T, H] and `logits<i>` [B, T, V], with an n-gram `ngram_probs` [B, T, V]; and the states. Outputs
like those of a sequence graph. `adapt_step`: the same for one token a row, without T.

D is as large as all other numbers of a row together, so a pass over it for every token would take
most of the time. But D_t f_t = D_0 f_t - sum over j < t of rate (f_j . f_t) (p_j - e_j): up to
C tokens are kept as they are, in the slots of a chunk, and added to D at once when the chunk is
full. (As linear attention is computed in chunks: Hua et al. 2022; Yang et al. 2024.) With decay,
D_t = k^t (D_0 - sum over j < t of k^-(j+1) ...), k = 1 - decay: features get these powers as
factors, and D its own when a chunk is added.

A row's chunks begin where its text begins, in whatever pieces it is read, and every number comes
from a product of the same shape, but for the number of rows (at least two, since a product of one
row has another kernel) and for zeros at the end of a sum (up to a multiple of four, for the same
reason). So rows are the same, bit for bit, alone or side by side, read or stepped.

States, zero where a text begins: of each network `adapt_weights<i>` [V, R] (D where the chunk
begins), `adapt_features<i>` [C, R] (times the rate) and `adapt_errors<i>` [C, V] (p - e_y; the last
is p alone, until y is known), and for all of them `adapt_filled` [1]: how many slots are filled.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from service.bundle.manifest import Role
from training.graphs.adapting_places import FILLED, SLOTS, add_places, add_step_places
from training.graphs.builder import (
    GraphBuilder,
    ValueInfo,
    add_axes,
    finish_model,
    float_info,
)
from training.graphs.language_model import add_logprobs, add_picked, add_weighted_sum
from training.networks.adapting import Adaptation
from training.networks.mixture import AnyLanguageModel

_BLOCK = 4  # the number of terms of a sum is rounded up to a multiple of it


@dataclass(frozen=True, slots=True)
class _Network:
    """Names and sizes of network i."""

    i: int
    feature_size: int
    vocab_size: int

    @property
    def state_shapes(self) -> dict[str, list[int]]:
        return {
            f"adapt_weights{self.i}": [self.vocab_size, self.feature_size],
            f"adapt_features{self.i}": [SLOTS, self.feature_size],
            f"adapt_errors{self.i}": [SLOTS, self.vocab_size],
        }


def state_shapes(model: AnyLanguageModel, adaptation: Adaptation) -> dict[str, list[int]]:
    """The states by name, in order: sizes after the batch axis."""
    shapes: dict[str, list[int]] = {}
    for network in _networks(model, adaptation):
        shapes |= network.state_shapes
    return shapes | {FILLED: [1]}


def build(model: AnyLanguageModel, adaptation: Adaptation, role: Role = "adapt") -> bytes:
    """One adapting graph, checked by ONNX's own checker."""
    graph = GraphBuilder()
    add_axes(graph)
    _add_constants(graph, adaptation, model.vocab_size)
    networks = _networks(model, adaptation)
    is_step = role == "adapt_step"
    (add_step_places if is_step else add_places)(graph)
    for network in networks:
        _add_features(graph, network, adaptation, is_step=is_step)
    add_network = _add_step if is_step else _add_sequence
    probs = [add_network(graph, network, adaptation) for network in networks]
    _add_outputs(graph, model, adaptation, probs, is_step=is_step)
    inputs, outputs = _interface(model, is_step=is_step)
    for name, shape in state_shapes(model, adaptation).items():
        inputs.append(float_info(name, ["B", *shape]))
        outputs.append(float_info(f"{name}_out", ["B", *shape]))
    return finish_model(graph, inputs, outputs)


def _networks(model: AnyLanguageModel, adaptation: Adaptation) -> list[_Network]:
    return [
        _Network(i, adaptation.feature_size(model, i), model.vocab_size)
        for i in range(len(model.networks))
    ]


def _add_constants(graph: GraphBuilder, adaptation: Adaptation, vocab_size: int) -> None:
    for name, number in (("zero", 0), ("one", 1), ("slots", SLOTS), ("vocab_size", vocab_size)):
        graph.constant(name, np.array(number, np.int64))
    graph.constant("axis_3", np.array([3], np.int64))
    graph.constant("slot_numbers", np.arange(SLOTS, dtype=np.int64)[None])  # [1, C]
    for end in {0, 1, *range(_BLOCK, SLOTS + 1, _BLOCK)}:
        graph.constant(f"to_{end}", np.array([end], np.int64))
    graph.constant("off_on", np.array([0.0, 1.0], np.float32))
    graph.constant("float_one", np.array(1.0, np.float32))
    powers = (1.0 - adaptation.decay) ** np.arange(SLOTS + 1)
    graph.constant("query_factors", powers[:SLOTS, None].astype(np.float32))  # [C, 1]
    graph.constant("key_factors", (adaptation.rate / powers[1:, None]).astype(np.float32))
    graph.constant("kept_of_weights", powers[-1].astype(np.float32))


# --- one network ------------------------------------------------------------------------------


def _add_features(
    graph: GraphBuilder, network: _Network, adaptation: Adaptation, *, is_step: bool
) -> None:
    """`features<i>` and `own_logits<i>`, [B, T, .]; in a step graph T is 1."""
    i = network.i
    hidden, logits = f"hidden{i}", f"logits{i}"
    if is_step:
        hidden, logits = (
            graph.add("Unsqueeze", [x, "axis_1"], f"{x}_row") for x in (hidden, logits)
        )
    projection = adaptation.projections[i]
    if projection is not None:
        graph.constant(f"projection{i}", projection.T)  # [H, R]
        hidden = graph.add("MatMul", [hidden, f"projection{i}"], f"projected{i}")
    graph.add("Identity", [hidden], f"features{i}")
    if adaptation.scales[i] != 1.0:
        graph.constant(f"scale{i}", np.array(adaptation.scales[i], np.float32))
        logits = graph.add("Mul", [logits, f"scale{i}"], f"scaled{i}")
    graph.add("Identity", [logits], f"own_logits{i}")


def _add_settled(graph: GraphBuilder, i: int) -> str:
    """The errors [B, C, V] with the token that has come after the last slot."""
    return graph.add("Sub", [f"adapt_errors{i}", "came"], f"settled{i}")


def _add_sequence(graph: GraphBuilder, network: _Network, adaptation: Adaptation) -> str:
    """Network i's probabilities [B, T, V]: a Scan over chunks."""
    i, size = network.i, network.feature_size
    for name, width in ((f"features{i}", size), (f"own_logits{i}", network.vocab_size)):
        graph.constant(f"{name}_flat", np.array([-1, width], np.int64))
        graph.add("Reshape", [name, f"{name}_flat"], f"{name}_rows")
        graph.add("Gather", [f"{name}_rows", "sources"], f"{name}_chunks")  # [N, B, C, .]
    queries = f"features{i}_chunks"
    graph.add("Mul", ["read", "key_factors"], f"read_keys{i}")
    keys = graph.add("Mul", [queries, f"read_keys{i}"], f"keys{i}")
    if adaptation.decay:
        queries = graph.add("Mul", [queries, "query_factors"], f"queries{i}")
    graph.constant(f"no_error{i}_shape", np.array([1, network.vocab_size], np.int64))
    graph.add("Concat", ["batch_axis", f"no_error{i}_shape"], f"no_errors{i}_shape", axis=0)
    graph.add("ConstantOfShape", [f"no_errors{i}_shape"], f"no_error{i}")  # [B, 1, V]
    states = (f"adapt_weights{i}", _add_settled(graph, i), f"adapt_features{i}")
    graph.add(
        "Scan",
        [*states, queries, keys, f"own_logits{i}_chunks", "read", "next", "flush"],
        *(f"adapt_{x}{i}_out" for x in ("weights", "errors", "features")),
        f"probs{i}_chunks",
        num_scan_inputs=6,
        body=_chunk(network, adaptation),
    )
    graph.constant(f"probs{i}_flat", np.array([-1, network.vocab_size], np.int64))
    graph.add("Reshape", [f"probs{i}_chunks", f"probs{i}_flat"], f"probs{i}_rows")
    return graph.add("Gather", [f"probs{i}_rows", "destinations"], f"probs{i}")


def _chunk(network: _Network, adaptation: Adaptation) -> onnx.GraphProto:
    """One chunk: where the slots are full, they are added to D; then they are filled again."""
    body = GraphBuilder()
    body.add("Mul", ["features", "flushed"], "flushed_features")
    updated = "updated" if adaptation.decay else "weights_next"
    _add_update(body, "weights", "errors", "flushed_features", updated)
    if adaptation.decay:
        body.add("Cast", ["flushed"], "is_flushed", to=TensorProto.BOOL)
        body.add("Where", ["is_flushed", "kept_of_weights", "float_one"], "kept_of_rows")
        body.add("Mul", [updated, "kept_of_rows"], "weights_next")
    body.add("Sub", ["float_one", "flushed"], "kept")
    body.add("Mul", ["features", "kept"], "kept_features")
    body.add("Add", ["kept_features", "keys"], "features_next")
    body.add("Mul", ["errors", "kept"], "kept_errors")
    body.add("Sub", ["kept_errors", "came_next"], "other_errors")
    _add_products(body, "queries", "weights_next", "features_next")
    body.add("Add", ["own_logits", "products"], "base")  # [B, C, V]
    _add_slots(body, f"no_error{network.i}")
    return _chunk_graph(body, network)


def _add_slots(body: GraphBuilder, no_error: str) -> None:
    """Slot after slot: its logits by the errors of those before it, its prediction, its error."""
    for name in ("base", "similar", "other_errors", "read_slots"):
        parts = [f"{name}{slot}" for slot in range(SLOTS)]  # [B, 1, .]
        body.add("Split", [name], *parts, axis=1, num_outputs=SLOTS)
    probs: list[str] = []
    errors: list[str] = []
    for slot in range(SLOTS):
        logits = f"base{slot}"
        if slot:
            before = [*errors, *[no_error] * (-slot % _BLOCK)]
            joined = body.add("Concat", before, f"errors_before{slot}", axis=1)
            body.add(
                "Slice", [f"similar{slot}", "to_0", f"to_{len(before)}", "axis_2"], f"own{slot}"
            )
            body.add("MatMul", [f"own{slot}", joined], f"correction{slot}")  # [B, 1, V]
            logits = body.add("Sub", [logits, f"correction{slot}"], f"slot_logits{slot}")
        probs.append(body.add("Softmax", [logits], f"slot_probs{slot}", axis=-1))
        body.add("Mul", [probs[-1], f"read_slots{slot}"], f"prediction{slot}")
        errors.append(
            body.add("Add", [f"prediction{slot}", f"other_errors{slot}"], f"slot_error{slot}")
        )
    body.add("Concat", errors, "errors_next", axis=1)
    body.add("Concat", probs, "probs", axis=1)


def _chunk_graph(body: GraphBuilder, network: _Network) -> onnx.GraphProto:
    by_vocab: list[int | str] = ["B", SLOTS, network.vocab_size]
    by_feature: list[int | str] = ["B", SLOTS, network.feature_size]
    weights: list[int | str] = ["B", network.vocab_size, network.feature_size]
    carried = {"weights": weights, "errors": by_vocab, "features": by_feature}
    sliced: dict[str, list[int | str]] = {
        "queries": by_feature,
        "keys": by_feature,
        "own_logits": by_vocab,
        "read_slots": ["B", SLOTS, 1],
        "came_next": by_vocab,
        "flushed": ["B", 1, 1],
    }
    after = {f"{name}_next": shape for name, shape in carried.items()}
    return helper.make_graph(
        body.nodes,
        "chunk",
        [float_info(*x) for x in (carried | sliced).items()],
        [float_info(*x) for x in (after | {"probs": by_vocab}).items()],
    )


def _add_update(graph: GraphBuilder, weights: str, errors: str, features: str, output: str) -> None:
    """D [B, V, R] less the sum over the slots of errors [B, C, V] times features [B, C, R]."""
    columns = graph.add("Transpose", [errors], f"{output}_columns", perm=[0, 2, 1])
    update = graph.add("MatMul", [columns, features], f"{output}_update")
    graph.add("Sub", [weights, update], output)


def _add_products(
    graph: GraphBuilder, queries: str, weights: str, features: str, suffix: str = ""
) -> None:
    """`products` [B, ., V] of queries [B, ., R] with D; `similar` [B, ., C] with the slots'."""
    for name, value in (("products", weights), ("similar", features)):
        columns = graph.add("Transpose", [value], f"{name}_columns{suffix}", perm=[0, 2, 1])
        graph.add("MatMul", [queries, columns], f"{name}{suffix}")


def _add_step(graph: GraphBuilder, network: _Network, adaptation: Adaptation) -> str:
    """Network i's probabilities [B, 1, V] after one token."""
    i = network.i
    errors, features = _add_step_flush(graph, i, adaptation)
    query = f"features{i}"  # [B, 1, R]
    graph.add("Mul", ["own_slot", "key_factors"], f"own_key_factor{i}")
    graph.add("Mul", [query, f"own_key_factor{i}"], f"own_key{i}")  # [B, C, R], zero elsewhere
    graph.add("Add", [features, f"own_key{i}"], f"adapt_features{i}_out")
    if adaptation.decay:
        graph.add("Gather", ["query_factors", "start"], f"own_query_factor{i}")  # [B, 1, 1]
        query = graph.add("Mul", [query, f"own_query_factor{i}"], f"query{i}")
    graph.add("Concat", [query, query], f"queries{i}", axis=1)
    _add_products(graph, f"queries{i}", f"adapt_weights{i}_out", features, str(i))
    for name in ("products", "similar"):
        graph.add("Slice", [f"{name}{i}", "to_0", "to_1", "axis_1"], f"own_{name}{i}")
    graph.add("Add", [f"own_logits{i}", f"own_products{i}"], f"base{i}")
    graph.add("MatMul", [f"own_similar{i}", errors], f"correction{i}")
    graph.add("Sub", [f"base{i}", f"correction{i}"], f"adapted_logits{i}")
    probs = graph.add("Softmax", [f"adapted_logits{i}"], f"probs{i}", axis=-1)
    graph.add("Mul", [probs, "own_slot"], f"own_error{i}")
    graph.add("Add", [errors, f"own_error{i}"], f"adapt_errors{i}_out")
    return probs


def _add_step_flush(graph: GraphBuilder, i: int, adaptation: Adaptation) -> tuple[str, str]:
    """`adapt_weights<i>_out`; returns the errors and features of the rows that are not full."""
    weights, features, errors = f"adapt_weights{i}", f"adapt_features{i}", _add_settled(graph, i)
    for name in (weights, errors, features):
        graph.add("Gather", [name, "full_rows"], f"full_{name}", axis=0)
    updated = f"updated{i}"
    _add_update(graph, f"full_{weights}", f"full_{errors}", f"full_{features}", updated)
    if adaptation.decay:
        updated = graph.add("Mul", [updated, "kept_of_weights"], f"decayed{i}")
    graph.add("ScatterND", [weights, "full_columns", updated], f"{weights}_out")
    kept_errors = graph.add("Mul", [errors, "kept"], f"kept_errors{i}")
    return kept_errors, graph.add("Mul", [features, "kept"], f"kept_features{i}")


# --- the whole --------------------------------------------------------------------------------


def _add_outputs(
    graph: GraphBuilder,
    model: AnyLanguageModel,
    adaptation: Adaptation,
    probs: Sequence[str],
    *,
    is_step: bool,
) -> None:
    """The mixture [B, T, V] of all parts, and its logarithm; in a step graph T is 1."""
    parts = list(probs)
    if model.ngram is not None:
        ngram = "ngram_probs"
        parts.append(graph.add("Unsqueeze", [ngram, "axis_1"], "ngram_row") if is_step else ngram)
    total = parts[0]
    if len(parts) > 1:
        total = add_weighted_sum(graph, parts, adaptation.weights)
    output = "all_logprobs" if is_step else "logprobs"
    add_logprobs(graph, total, model.vocab_size, adaptation.exponent, output)
    if is_step:
        graph.add("Squeeze", [output, "axis_1"], "logprobs")
    else:
        add_picked(graph)


def _interface(
    model: AnyLanguageModel, *, is_step: bool
) -> tuple[list[ValueInfo], list[ValueInfo]]:
    """Inputs and outputs before the states."""
    rows: list[int | str] = ["B"] if is_step else ["B", "T"]
    tokens, targets = (
        helper.make_tensor_value_info(x, TensorProto.INT64, rows) for x in ("tokens", "targets")
    )
    lengths = helper.make_tensor_value_info("lengths", TensorProto.INT32, ["B"])
    inputs = [tokens] if is_step else [tokens, lengths, targets]
    for i, network in enumerate(model.networks):
        inputs.append(float_info(f"hidden{i}", [*rows, network.config.hidden_size]))
        inputs.append(float_info(f"logits{i}", [*rows, model.vocab_size]))
    if model.ngram is not None:
        inputs.append(float_info("ngram_probs", [*rows, model.vocab_size]))
    logprobs = float_info("logprobs", [*rows, model.vocab_size])
    return inputs, [logprobs] if is_step else [float_info("target_logprobs", rows), logprobs]
