"""Where the tokens of a call belong among the slots of the adapting graphs' chunks.

B batch, T time, V vocabulary, C slots of a chunk, N chunks.

A row's first token goes into the slot after those that its state has filled, so rows beside each
other can begin in different slots. Integers only: nothing here is rounded.
"""

import numpy as np
from onnx import TensorProto

from training.graphs.builder import GraphBuilder

SLOTS = 16
FILLED = "adapt_filled"


def _add_start(graph: GraphBuilder, reads: str | None) -> None:
    """`full` [B, 1]: whose chunk is added to D first; `start` [B, 1]: the slot of the first token.

    `pending` [B, C, 1] is one at the slot whose next token has come, `first` [B, V] that token.
    `reads` [B, 1] is where a row reads anything, if there are rows that do not.
    """
    graph.add("Cast", [FILLED], "filled", to=TensorProto.INT64)  # [B, 1]
    graph.add("Equal", ["filled", "slots"], "is_full")
    graph.add("Sub", ["filled", "one"], "last_filled")
    graph.add("Equal", ["slot_numbers", "last_filled"], "is_last")  # [B, C]
    full, pending = "is_full", "is_last"
    if reads is not None:
        full = graph.add("And", [full, reads], "is_full_and_reads")
        pending = graph.add("And", [pending, reads], "is_last_and_reads")
    graph.add("Identity", [full], "full")
    graph.add("Where", ["full", "zero", "filled"], "start")
    graph.add("Cast", [pending], "pending_row", to=TensorProto.FLOAT)
    graph.add("Unsqueeze", ["pending_row", "axis_2"], "pending")
    graph.add("OneHot", ["first_tokens", "vocab_size", "off_on"], "first", axis=-1)
    graph.add("Unsqueeze", ["first", "axis_1"], "first_row")  # [B, 1, V]
    graph.add("Mul", ["pending", "first_row"], "came")  # [B, C, V]


def add_places(graph: GraphBuilder) -> None:
    """For every slot of every chunk [N, B, C]: the token there, and the one after it."""
    graph.add("Cast", ["lengths"], "lengths_row", to=TensorProto.INT64)
    graph.add("Unsqueeze", ["lengths_row", "axis_1"], "ends")  # [B, 1]
    graph.add("Greater", ["ends", "zero"], "reads")
    graph.add("Gather", ["tokens", "zero"], "first_column", axis=1)
    graph.add("Squeeze", ["first_column", "axis_1"], "first_tokens")
    _add_start(graph, "reads")
    graph.add("Shape", ["tokens"], "shape")
    graph.add("Split", ["shape"], "batch_axis", "time_axis", num_outputs=2)
    graph.add("Squeeze", ["batch_axis"], "batch")
    graph.add("Squeeze", ["time_axis"], "time")
    graph.add("Sub", ["time", "one"], "last_time")
    # Rows of [N, B, C]; the last chunk has at least one token of some row.
    graph.add("ReduceMax", ["start"], "latest_start", keepdims=0)
    graph.add("Add", ["latest_start", "last_time"], "last_place")
    graph.add("Div", ["last_place", "slots"], "last_chunk")
    graph.add("Add", ["last_chunk", "one"], "chunks")
    graph.add("Mul", ["chunks", "slots"], "places_end")
    graph.add("Range", ["zero", "places_end", "one"], "places_row")
    graph.constant("by_chunk", np.array([-1, 1, SLOTS], np.int64))
    graph.add("Reshape", ["places_row", "by_chunk"], "places")  # [N, 1, C]
    graph.add("Sub", ["places", "start"], "times")  # [N, B, C] which token of the call
    graph.add("GreaterOrEqual", ["times", "zero"], "began")
    graph.add("Less", ["times", "ends"], "goes_on")
    graph.add("And", ["began", "goes_on"], "is_read")
    graph.add("Cast", ["is_read"], "read_places", to=TensorProto.FLOAT)
    graph.add("Unsqueeze", ["read_places", "axis_3"], "read")  # [N, B, C, 1]
    graph.add("Range", ["zero", "batch", "one"], "rows_row")
    graph.add("Unsqueeze", ["rows_row", "axis_1"], "rows")  # [B, 1]
    graph.add("Mul", ["rows", "time"], "row_starts")
    _add_sources(graph, "times", "times", "sources")
    graph.add("Add", ["times", "one"], "next_times")
    graph.add("Less", ["next_times", "ends"], "has_next_time")
    graph.add("And", ["began", "has_next_time"], "has_next")
    _add_sources(graph, "next_times", "next", "next_sources")
    graph.constant("flat", np.array([-1], np.int64))
    graph.add("Reshape", ["tokens", "flat"], "all_tokens")
    graph.add("Gather", ["all_tokens", "next_sources"], "next_tokens")
    graph.add("Where", ["has_next", "next_tokens", "vocab_size"], "known_tokens")
    graph.add("OneHot", ["known_tokens", "vocab_size", "off_on"], "next", axis=-1)  # [N, B, C, V]
    _add_flushes(graph)
    _add_destinations(graph)


def _add_sources(graph: GraphBuilder, times: str, name: str, output: str) -> None:
    """`output` [N, B, C]: which of the B·T rows has a slot's token; any where the call has none."""
    graph.add("Max", [times, "zero"], f"{name}_from_zero")
    graph.add("Min", [f"{name}_from_zero", "last_time"], f"{name}_inside")
    graph.add("Add", ["row_starts", f"{name}_inside"], output)


def _add_flushes(graph: GraphBuilder) -> None:
    """`flush` [N, B, 1, 1]: one where what the row has in its slots is added to D first."""
    graph.add("Add", ["start", "ends"], "end")  # [B, 1]
    graph.add("Gather", ["places", "zero"], "first_places", axis=2)
    graph.add("Squeeze", ["first_places", "axis_2"], "chunk_starts")  # [N, 1]
    graph.add("Equal", ["chunk_starts", "zero"], "is_first_chunk")
    graph.add("Squeeze", ["end", "axis_1"], "end_row")  # [B]
    graph.add("Greater", ["end_row", "chunk_starts"], "is_reached")  # [N, B]
    graph.add("Cast", ["is_reached"], "reached", to=TensorProto.FLOAT)
    graph.add("Squeeze", ["full", "axis_1"], "is_full_row")
    graph.add("Cast", ["is_full_row"], "full_row", to=TensorProto.FLOAT)
    graph.add("Where", ["is_first_chunk", "full_row", "reached"], "flush_rows")
    graph.constant("last_axes", np.array([2, 3], np.int64))
    graph.add("Unsqueeze", ["flush_rows", "last_axes"], "flush")


def _add_destinations(graph: GraphBuilder) -> None:
    """`destinations` [B, T]: where each token is among N·B·C slots; and the slots filled after."""
    graph.add("Range", ["zero", "time", "one"], "time_row")
    graph.add("Add", ["start", "time_row"], "own_places")  # [B, T]
    graph.add("Div", ["own_places", "slots"], "own_chunks")
    graph.add("Mod", ["own_places", "slots"], "own_slots")
    graph.add("Mul", ["own_chunks", "batch"], "own_chunk_rows")
    graph.add("Add", ["own_chunk_rows", "rows"], "own_rows")
    graph.add("Mul", ["own_rows", "slots"], "own_row_starts")
    graph.add("Add", ["own_row_starts", "own_slots"], "destinations")
    graph.add("Sub", ["end", "one"], "last_read")
    graph.add("Mod", ["last_read", "slots"], "last_slot")
    graph.add("Add", ["last_slot", "one"], "filled_by_reading")
    graph.add("Where", ["reads", "filled_by_reading", "filled"], "filled_after")
    graph.add("Cast", ["filled_after"], f"{FILLED}_out", to=TensorProto.FLOAT)


def add_step_places(graph: GraphBuilder) -> None:
    """Every row reads one token, into the slot `start` [B, 1]."""
    graph.add("Identity", ["tokens"], "first_tokens")
    _add_start(graph, None)
    graph.add("Equal", ["slot_numbers", "start"], "is_own_slot")  # [B, C]
    graph.add("Cast", ["is_own_slot"], "own_slot_row", to=TensorProto.FLOAT)
    graph.add("Unsqueeze", ["own_slot_row", "axis_2"], "own_slot")  # [B, C, 1]
    graph.add("Squeeze", ["full", "axis_1"], "full_row")
    graph.add("NonZero", ["full_row"], "full_places")  # [1, full rows]
    graph.add("Squeeze", ["full_places", "axis_0"], "full_rows")
    graph.add("Transpose", ["full_places"], "full_columns", perm=[1, 0])
    graph.add("Cast", ["full"], "full_float", to=TensorProto.FLOAT)
    graph.add("Unsqueeze", ["full_float", "axis_2"], "flush")  # [B, 1, 1]
    graph.add("Sub", ["float_one", "flush"], "kept")
    graph.add("Add", ["start", "one"], "filled_after")
    graph.add("Cast", ["filled_after"], f"{FILLED}_out", to=TensorProto.FLOAT)
