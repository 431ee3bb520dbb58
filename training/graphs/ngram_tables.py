"""The tables of an n-gram's trie, packed, with the nodes that unpack them.

V vocabulary, N nodes, S slots, P runs of a row.

The unpacking nodes depend on constants alone: onnxruntime folds them when it loads the graph, and
nothing is left of them in a run. Numbers that repeat are codes into a book of the distinct ones:
the most frequent 255 take a byte, the others a byte and two more.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper

from training.graphs.builder import GraphBuilder
from training.networks.ngram_trie import NOWHERE, RUN, Trie

_ESCAPE = 255  # this byte says that the code is in two more bytes


def add_tables(graph: GraphBuilder, trie: Trie) -> None:
    """The trie's tables, each under its name.

    By token: `ngram_columns` [V] and `ngram_column_of_row` [V, 1]. By slot: `ngram_check` [S] and
    `ngram_child` [S]; `ngram_check_runs` and `ngram_mass_runs` [S / 8, 8]. By node: `ngram_begin`
    [N] in slots, `ngram_row_begin` [N, 1] in runs, `ngram_color` [N], `ngram_row_color` [N, 1, 1],
    and `ngram_log_gamma` [N] in double precision. Besides, `ngram_root`, `ngram_nowhere`, and
    `ngram_runs` [P], the runs of a row.
    """
    graph.constant("ngram_root", np.array(trie.root, np.int32))
    graph.constant("ngram_nowhere", np.array(NOWHERE, np.int32))
    graph.constant("ngram_columns", trie.columns.astype(np.int32))
    graph.constant("ngram_runs", np.arange(trie.row_runs, dtype=np.int32))  # [P]
    for name, shape in (("run", [-1, RUN]), ("column", [-1, 1]), ("cell", [-1, 1, 1])):
        graph.constant(f"ngram_as_{name}", np.array(shape))
    graph.add("Reshape", ["ngram_columns", "ngram_as_column"], "ngram_column_of_row")
    colors = np.uint8 if max(trie.check.max(), trie.color.max()) < 256 else np.int32
    graph.constant("ngram_check", trie.check.astype(colors))
    graph.add("Reshape", ["ngram_check", "ngram_as_run"], "ngram_check_runs")
    mass = _add_packed(graph, "ngram_mass", trie.mass.astype(np.float32))
    graph.add("Reshape", [mass, "ngram_as_run"], "ngram_mass_runs")
    _add_children(graph, trie)
    _add_bases(graph, trie)
    graph.constant("ngram_run_slots", np.array(RUN, np.int32))
    graph.add("Mul", ["ngram_begin_run", "ngram_run_slots"], "ngram_begin")
    graph.add("Reshape", ["ngram_begin_run", "ngram_as_column"], "ngram_row_begin")
    color = _add_colors(graph, trie)
    graph.add("Cast", [color], "ngram_color", to=helper.np_dtype_to_tensor_dtype(np.dtype(colors)))
    graph.add("Reshape", ["ngram_color", "ngram_as_cell"], "ngram_row_color")
    # Nothing is shorter than the root's history: its own gamma is never read.
    gamma = trie.gamma.astype(np.float32).astype(np.float64)
    gamma[trie.root] = 1.0
    _add_packed(graph, "ngram_log_gamma", np.log(np.maximum(gamma, np.finfo(np.float64).tiny)))


def _add_children(graph: GraphBuilder, trie: Trie) -> None:
    """A node's id is its rank among the slots with a node; one bit per slot says which have one."""
    bits = np.packbits(trie.child > 0, bitorder="little")
    graph.constant("ngram_child_bytes", bits[:, None])  # [S / 8, 1]
    graph.constant("ngram_bit_places", np.arange(8, dtype=np.uint8))
    graph.constant("ngram_lowest_bit", np.array(1, np.uint8))
    graph.constant("ngram_flat", np.array([-1]))
    graph.add(
        "BitShift", ["ngram_child_bytes", "ngram_bit_places"], "ngram_shifted", direction="RIGHT"
    )
    graph.add("BitwiseAnd", ["ngram_shifted", "ngram_lowest_bit"], "ngram_bits")
    graph.add("Reshape", ["ngram_bits", "ngram_flat"], "ngram_flat_bits")  # [S]
    graph.add("Cast", ["ngram_flat_bits"], "ngram_has_child", to=TensorProto.INT32)
    _add_counted(graph, "ngram_has_child", "ngram_child_count")
    graph.add("Mul", ["ngram_has_child", "ngram_child_count"], "ngram_child")


def _add_bases(graph: GraphBuilder, trie: Trie) -> str:
    """[N] first runs, in two bytes each or, for large tries, in three."""
    graph.constant("ngram_base", (trie.base % (1 << 16)).astype(np.uint16))
    if trie.base.max() < 1 << 16:
        return graph.add("Cast", ["ngram_base"], "ngram_begin_run", to=TensorProto.INT32)
    graph.constant("ngram_base_high", (trie.base >> 16).astype(np.uint8))
    graph.constant("ngram_high_unit", np.array(1 << 16, np.int32))
    graph.add("Cast", ["ngram_base"], "ngram_base_low", to=TensorProto.INT32)
    graph.add("Cast", ["ngram_base_high"], "ngram_base_units", to=TensorProto.INT32)
    graph.add("Mul", ["ngram_base_units", "ngram_high_unit"], "ngram_base_rest")
    return graph.add("Add", ["ngram_base_rest", "ngram_base_low"], "ngram_begin_run")


def _add_colors(graph: GraphBuilder, trie: Trie) -> str:
    """[N] colors from the bases: see `Trie.color`."""
    nodes = trie.root  # all but NOWHERE
    for name, value in (("one", 1), ("modulus", trie.row_runs), ("shared", trie.shared)):
        graph.constant(f"ngram_{name}", np.array([value], np.int32))
    for name, number in (
        ("front", 1),
        ("node_count", nodes),
        ("run_count", len(trie.check) // RUN),
    ):
        graph.constant(f"ngram_{name}", np.array([number]))
    graph.constant("ngram_nowhere_color", trie.color[:1].astype(np.int32))
    graph.constant("ngram_end", np.array([nodes + 1]))
    graph.add("Slice", ["ngram_begin_run", "ngram_front", "ngram_end"], "ngram_bases")  # [N - 1]
    for name, size, value in (("ones", "node_count", 1), ("empty", "run_count", 0)):
        filled = helper.make_tensor("value", TensorProto.INT32, [1], [value])
        graph.add("ConstantOfShape", [f"ngram_{size}"], f"ngram_{name}", value=filled)
    # A node's rank is its place in the order of bases, less the number of nodes with smaller bases.
    graph.add(
        "ScatterElements",
        ["ngram_empty", "ngram_bases", "ngram_ones"],
        "ngram_base_sizes",
        reduction="add",
    )
    before = _add_counted(graph, "ngram_base_sizes", "ngram_smaller", exclusive=1)
    graph.add(
        "TopK", ["ngram_bases", "ngram_node_count"], "ngram_ordered", "ngram_order", largest=0
    )
    place = _add_counted(graph, "ngram_ones", "ngram_place", exclusive=1)
    graph.add("Gather", [before, "ngram_ordered"], "ngram_first_of_base")
    graph.add("Sub", [place, "ngram_first_of_base"], "ngram_ordered_rank")
    graph.add("ScatterElements", ["ngram_ones", "ngram_order", "ngram_ordered_rank"], "ngram_rank")
    graph.add("Mod", ["ngram_bases", "ngram_modulus"], "ngram_residue")
    graph.add("Mul", ["ngram_residue", "ngram_shared"], "ngram_residue_color")
    graph.add("Add", ["ngram_residue_color", "ngram_rank"], "ngram_from_0")
    graph.add("Add", ["ngram_from_0", "ngram_one"], "ngram_node_color")
    return graph.add(
        "Concat", ["ngram_nowhere_color", "ngram_node_color"], "ngram_all_colors", axis=0
    )


def _add_counted(graph: GraphBuilder, numbers: str, name: str, exclusive: int = 0) -> str:
    """Sums of the `numbers` up to each place, its own included unless `exclusive`."""
    graph.constant(f"{name}_axis", np.array(0))
    return graph.add("CumSum", [numbers, f"{name}_axis"], name, exclusive=exclusive)


def _add_packed(graph: GraphBuilder, name: str, values: npt.NDArray[np.floating[Any]]) -> str:
    """One-dimensional `values` under `name`."""
    book, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
    by_frequency = np.argsort(-counts, kind="stable")
    rank = np.empty(len(book), np.int64)
    rank[by_frequency] = np.arange(len(book))
    codes = rank[codes]
    if len(book) > 1 << 16:
        return graph.constant(name, values)
    graph.constant(f"{name}_book", book[by_frequency])
    graph.add("Cast", [_add_codes(graph, name, codes)], f"{name}_code", to=TensorProto.INT32)
    return graph.add("Gather", [f"{name}_book", f"{name}_code"], name)


def _add_codes(graph: GraphBuilder, name: str, codes: npt.NDArray[np.int64]) -> str:
    """Codes below 2^16, of which frequent values have the small ones, in the smallest form."""
    long = codes >= _ESCAPE
    if codes.max() <= _ESCAPE:
        return graph.constant(f"{name}_bytes", codes.astype(np.uint8))
    if len(codes) <= 2 * np.count_nonzero(long):
        return graph.constant(f"{name}_codes", codes.astype(np.uint16))
    graph.constant(f"{name}_bytes", np.minimum(codes, _ESCAPE).astype(np.uint8))
    # The count is 0 before the first long code: the list begins with an entry that is never used.
    graph.constant(f"{name}_rest", np.append(0, codes[long]).astype(np.uint16))
    graph.constant(f"{name}_escape", np.array(_ESCAPE, np.int32))
    graph.add("Cast", [f"{name}_bytes"], f"{name}_short", to=TensorProto.INT32)
    graph.add("Cast", [f"{name}_rest"], f"{name}_rest_codes", to=TensorProto.INT32)
    graph.add("Equal", [f"{name}_short", f"{name}_escape"], f"{name}_is_long")
    graph.add("Cast", [f"{name}_is_long"], f"{name}_flags", to=TensorProto.INT32)
    place = _add_counted(graph, f"{name}_flags", f"{name}_place")
    graph.add("Gather", [f"{name}_rest_codes", place], f"{name}_long")
    return graph.add("Where", [f"{name}_is_long", f"{name}_long", f"{name}_short"], f"{name}_codes")
