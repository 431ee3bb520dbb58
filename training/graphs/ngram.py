"""An n-gram model as ONNX nodes: a walk through its trie, and the sum over all suffixes.

B batch, T time, V vocabulary, K the longest history (order - 1), N nodes, S slots, W slots of a
row, P runs of a row, M rows of a batch or of a batch and its times.

`add_sequence` reads `tokens` [B, T], `lengths` [B] and `ngram_nodes` [B, K], `add_step` `tokens`
[B] and `ngram_nodes`; both write `ngram_nodes_out`, the nodes after each row's last token, and
return the name of the probabilities, [B, T, V] or [B, V].

With mass_k the row of the last k tokens and gamma_k the weight that it leaves to the lower orders,
p = sum over k of mass_k times the gammas of all longer histories. Every operator here gave the same
bits for a row whatever stood beside it: the sum is a MatMul with one row, because ReduceSum over
that axis did not, and no product of two matrices because a Gemm's kernel depends on its rows.
"""

import numpy as np
from onnx import TensorProto, helper

from training.graphs.builder import GraphBuilder, float_info
from training.graphs.ngram_tables import add_tables
from training.networks.ngram import STATE_NAME, NGram
from training.networks.ngram_trie import RUN

# Where a token's rows have more numbers than this, tokens are read one by one: 64 rows of 64 tokens
# at once would take gigabytes.
_WIDE = 2048


def add_sequence(graph: GraphBuilder, ngram: NGram) -> str:
    """The nodes for whole sequences; the name of the probabilities [B, T, V]."""
    add_tables(graph, ngram.trie)
    size = ngram.order - 1
    graph.add("Gather", ["ngram_columns", "tokens"], "ngram_column")  # [B, T]
    graph.add("Cast", [STATE_NAME], "ngram_before", to=TensorProto.INT32)  # [B, K]
    # Level by level: the history of k tokens is the child of that of k - 1 before the last one.
    every = []
    graph.constant("ngram_drop", np.array([0, 0, 0, -1]))
    histories = "ngram_root"
    for i in range(size):
        own = _add_children(graph, histories, "ngram_column", str(i))  # [B, T]
        graph.constant(f"ngram_place{i}", np.array([i]))
        graph.add("Gather", ["ngram_before", f"ngram_place{i}"], f"ngram_first{i}", axis=1)
        graph.add("Concat", [f"ngram_first{i}", own], f"ngram_times{i}", axis=1)  # [B, T + 1]
        every.append(graph.add("Unsqueeze", [f"ngram_times{i}", "axis_2"], f"ngram_part{i}"))
        histories = graph.add("Pad", [f"ngram_times{i}", "ngram_drop"], f"ngram_up_to{i}")
    graph.add("Concat", every, "ngram_paths", axis=2)  # [B, T + 1, K]
    graph.add("Cast", ["lengths"], "ngram_lengths", to=TensorProto.INT64)
    graph.add("Unsqueeze", ["ngram_lengths", "axis_1"], "ngram_last")  # [B, 1]
    graph.add("GatherND", ["ngram_paths", "ngram_last"], "ngram_after", batch_dims=1)  # [B, K]
    graph.add("Cast", ["ngram_after"], f"{STATE_NAME}_out", to=TensorProto.FLOAT)
    graph.constant("ngram_skip", np.array([0, -1, 0, 0, 0, 0]))
    graph.add("Pad", ["ngram_paths", "ngram_skip"], "ngram_read")  # [B, T, K]
    if (size + 1) * ngram.trie.row_runs * RUN > _WIDE:
        return _add_one_by_one(graph, ngram, "ngram_read")
    return _add_all_at_once(graph, ngram, "ngram_read")


def _add_all_at_once(graph: GraphBuilder, ngram: NGram, paths: str) -> str:
    """[B, T, V] probabilities from the nodes [B, T, K] of the suffixes."""
    graph.constant("ngram_rows_shape", np.array([-1, ngram.order - 1]))
    graph.add("Reshape", [paths, "ngram_rows_shape"], "ngram_rows")  # [M, K]
    probs = _add_probabilities(graph, ngram, "ngram_rows")  # [M, V]
    graph.add("Shape", ["tokens"], "ngram_tokens_shape")
    graph.constant("ngram_vocab_size", np.array([ngram.vocab_size]))
    graph.add("Concat", ["ngram_tokens_shape", "ngram_vocab_size"], "ngram_shape", axis=0)
    return graph.add("Reshape", [probs, "ngram_shape"], "ngram_probs")


def _add_one_by_one(graph: GraphBuilder, ngram: NGram, paths: str) -> str:
    """The same in a Scan over time."""
    body = GraphBuilder()
    probs = _add_probabilities(body, ngram, "ngram_now")  # [B, V]
    graph.constants.extend(body.constants)
    now = helper.make_tensor_value_info("ngram_now", TensorProto.INT32, ["B", ngram.order - 1])
    row = float_info(probs, ["B", ngram.vocab_size])
    return graph.add(
        "Scan",
        [paths],
        "ngram_probs",
        num_scan_inputs=1,
        scan_input_axes=[1],
        scan_output_axes=[1],
        body=helper.make_graph(body.nodes, "ngram", [now], [row]),
    )


def add_step(graph: GraphBuilder, ngram: NGram) -> str:
    """The nodes for one token a row; the name of the probabilities [B, V]."""
    add_tables(graph, ngram.trie)
    graph.add("Gather", ["ngram_column_of_row", "tokens"], "ngram_column")  # [B, 1]
    graph.add("Cast", [STATE_NAME], "ngram_before", to=TensorProto.INT32)
    # Each history's parent is the next shorter one; that of the last token alone is the root.
    graph.constant("ngram_shift", np.array([0, 1, 0, -1]))
    graph.add("Pad", ["ngram_before", "ngram_shift", "ngram_root"], "ngram_histories")  # [B, K]
    rows = _add_children(graph, "ngram_histories", "ngram_column")
    graph.add("Cast", [rows], f"{STATE_NAME}_out", to=TensorProto.FLOAT)
    return _add_probabilities(graph, ngram, rows)


def _add_children(graph: GraphBuilder, histories: str, columns: str, suffix: str = "") -> str:
    """The nodes of `histories` and the token in `columns`, of the same shape or one that fits."""
    graph.add("Gather", ["ngram_begin", histories], f"ngram_first_slot{suffix}")
    graph.add("Add", [f"ngram_first_slot{suffix}", columns], f"ngram_slot{suffix}")
    graph.add("Gather", ["ngram_check", f"ngram_slot{suffix}"], f"ngram_slot_color{suffix}")
    graph.add("Gather", ["ngram_color", histories], f"ngram_own_color{suffix}")
    found = graph.add(
        "Equal", [f"ngram_slot_color{suffix}", f"ngram_own_color{suffix}"], f"ngram_is{suffix}"
    )
    child = graph.add("Gather", ["ngram_child", f"ngram_slot{suffix}"], f"ngram_there{suffix}")
    return graph.add("Where", [found, child, "ngram_nowhere"], f"ngram_child{suffix}_or_none")


def _add_probabilities(graph: GraphBuilder, ngram: NGram, nodes: str) -> str:
    """[M, V] probabilities from the `nodes` [M, K] of the suffixes."""
    graph.constant("ngram_in_front", np.array([0, 1, 0, 0]))
    # The empty suffix is the first.
    graph.add("Pad", [nodes, "ngram_in_front", "ngram_root"], "ngram_suffixes")  # [M, K + 1]
    graph.add("Gather", ["ngram_row_begin", "ngram_suffixes"], "ngram_row_run")  # [M, K + 1, 1]
    graph.add("Add", ["ngram_row_run", "ngram_runs"], "ngram_row_runs")  # [M, K + 1, P]
    graph.add("Gather", ["ngram_check_runs", "ngram_row_runs"], "ngram_colors")  # [.., P, 8]
    graph.add("Gather", ["ngram_row_color", "ngram_suffixes"], "ngram_wanted")  # [M, K + 1, 1, 1]
    graph.add("Equal", ["ngram_colors", "ngram_wanted"], "ngram_own")
    graph.add("Gather", ["ngram_mass_runs", "ngram_row_runs"], "ngram_masses")
    # Where takes several times as long as a product with ones and zeros.
    graph.add("Cast", ["ngram_own"], "ngram_mask", to=TensorProto.FLOAT)
    graph.add("Mul", ["ngram_masses", "ngram_mask"], "ngram_own_masses")
    graph.constant("ngram_row_shape", np.array([0, 0, ngram.trie.row_runs * RUN]))
    graph.add("Reshape", ["ngram_own_masses", "ngram_row_shape"], "ngram_row")  # [M, K + 1, W]
    shares = _add_shares(graph)
    graph.add("MatMul", [shares, "ngram_row"], "ngram_sums")  # [M, 1, W]
    graph.add("Squeeze", ["ngram_sums", "axis_1"], "ngram_sum")  # [M, W]
    return graph.add("Gather", ["ngram_sum", "ngram_columns"], "ngram_rows_probs", axis=1)


def _add_shares(graph: GraphBuilder) -> str:
    """[M, 1, K + 1] products of the gammas of all longer suffixes, as sums of logarithms.

    The sums are in double precision: a share is as exact as single precision allows.
    """
    graph.constant("ngram_suffix_axis", np.array(1))
    graph.add("Gather", ["ngram_log_gamma", "ngram_suffixes"], "ngram_log_gammas")  # [M, K + 1]
    graph.add(
        "CumSum",
        ["ngram_log_gammas", "ngram_suffix_axis"],
        "ngram_longer",
        exclusive=1,
        reverse=1,
    )
    graph.add("Cast", ["ngram_longer"], "ngram_log_shares", to=TensorProto.FLOAT)
    graph.add("Exp", ["ngram_log_shares"], "ngram_shares")
    return graph.add("Unsqueeze", ["ngram_shares", "axis_1"], "ngram_weights")
