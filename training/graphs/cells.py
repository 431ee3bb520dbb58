"""Recurrent layers composed of small operators: one step, or a Scan over steps.

B batch, T time, H hidden, G gates of the cell (rnn 1, gru 3, lstm 4).

A step is written once and used twice, as the step graph and as the body of the sequence graph's
Scan: the same operators on the same numbers, so the two agree bit for bit (except for the sign of a
zero, which onnxruntime's `Where` drops). Every operator computes a row from that row alone.

In a Scan of few units an operator costs a microsecond whatever it computes. So in eight bits the h
of an LSTM or tanh RNN is carried as the steps that products read, made once for its own next step
and for the layer above. It runs on past a row's end, and the row's last h is picked afterwards.
"""

from collections.abc import Callable, Sequence

import numpy as np
from onnx import TensorProto, helper

from training.graphs.builder import GraphBuilder, ValueInfo, array
from training.graphs.products import add_int8_matrix, add_state_steps, int8_product, int8_steps
from training.graphs.quantization import QuantizedLayer, candidate_bias, input_bias, input_table
from training.networks.recurrent import ForwardLayers

# Appends a step's nodes, from `projected` [B, G·H] and `<state>_before` to `<state>_new`.
Step = Callable[[GraphBuilder, str], str]

LSTM_GATES = ("in", "forget", "candidate", "out")  # in torch's order


def float_rnn_step(graph: GraphBuilder, model: ForwardLayers) -> Step:
    """The tanh RNN in single precision; its weights go to `graph`."""
    layers = model.recurrent_layers
    graph.constant("table", input_table(model))  # [V, H]
    for i, layer in enumerate(layers):
        graph.constant(f"weight_hh{i}", array(layer.weight_hh).T)  # [H, H]
        if i:
            graph.constant(f"weight_ih{i}", array(layer.weight_ih).T)
            graph.constant(f"bias{i}", input_bias("rnn", layer))

    def step(body: GraphBuilder, x: str) -> str:
        for i in range(len(layers)):
            if i:
                product = body.add("MatMul", [x, f"weight_ih{i}"], f"input_product{i}")
                x = body.add("Add", [product, f"bias{i}"], f"input{i}")
            recurrent = body.add("MatMul", [f"h{i}_before", f"weight_hh{i}"], f"recurrent{i}")
            total = body.add("Add", [recurrent, x], f"total{i}")
            x = body.add("Tanh", [total], f"h{i}_new")
        return x

    return step


def carried_states(model: ForwardLayers) -> list[str]:
    """The states that a Scan in eight bits carries as steps: those that only products read."""
    return [] if model.config.cell == "gru" else [x for x in model.state_names if x[0] == "h"]


def int8_step(graph: GraphBuilder, model: ForwardLayers, carried: Sequence[str] = ()) -> Step:
    """Any cell with eight-bit products; its weights go to `graph`.

    Of the states that are `carried`, it reads `<state>_steps` and writes `<state>_steps_next`.
    """
    cell = model.config.cell
    layers = model.recurrent_layers
    graph.constant("table", input_table(model))  # [V, G·H]
    add_state_steps(graph)
    for i, layer in enumerate(layers):
        matrices = QuantizedLayer.of(cell, layer, first=i == 0)
        add_int8_matrix(graph, f"recurrent{i}", matrices.recurrent)
        if matrices.inputs is not None:
            add_int8_matrix(graph, f"input{i}", matrices.inputs)
        if i:
            graph.constant(f"bias{i}", input_bias(cell, layer))
        if cell == "gru":
            graph.constant(f"candidate_bias{i}", candidate_bias(layer))
    if cell == "gru":
        add_gru_split(graph, model.config.hidden_size)

    def step(body: GraphBuilder, x: str) -> str:
        for i in range(len(layers)):
            x = _add_int8_layer(body, cell, i, x, is_carried=f"h{i}" in carried)
        return x

    return step


def add_scan(
    graph: GraphBuilder, model: ForwardLayers, step: Step, carried: Sequence[str] = ()
) -> str:
    """A Scan of the step over time; returns the last layer's outputs [T, B, H].

    Reads `tokens_by_time` [T, B], `lengths` [B], each at least 1, and the states, and writes
    `<state>_out`: the states after each row's last token. `carried` is what the step was made with.
    """
    add_time_mask(graph)
    graph.add("Gather", ["table", "tokens_by_time"], "projected_by_time")  # [T, B, G·H]
    masked = [name for name in model.state_names if name not in carried]
    body = GraphBuilder()
    output = step(body, "projected")
    for name in masked:
        body.add("Where", ["inside", f"{name}_new", f"{name}_before"], f"{name}_next")
    outputs = [f"{name}_new" for name in carried]
    if output not in outputs:
        outputs = [body.add("Identity", [output], "output")]
    hidden = model.config.hidden_size

    def rows(
        name: str, size: int | None = hidden, kind: TensorProto.DataType = TensorProto.FLOAT
    ) -> ValueInfo:
        return helper.make_tensor_value_info(name, kind, ["B", size])

    subgraph = helper.make_graph(
        body.nodes,
        "step",
        [
            *(rows(f"{name}_steps", kind=TensorProto.UINT8) for name in carried),
            *(rows(f"{name}_before") for name in masked),
            rows("projected", None),
            rows("inside", 1, TensorProto.BOOL),
        ],
        [
            *(rows(f"{name}_steps_next", kind=TensorProto.UINT8) for name in carried),
            *(rows(f"{name}_next") for name in masked),
            *map(rows, outputs),
        ],
    )
    by_time = [f"{name}_by_time" for name in carried] or ["outputs_by_time"]
    graph.add(
        "Scan",
        [
            *(int8_steps(graph, name, f"{name}_first_steps") for name in carried),
            *masked,
            "projected_by_time",
            "inside_by_time",
        ],
        *(f"{name}_last_steps" for name in carried),
        *(f"{name}_out" for name in masked),
        *by_time,
        num_scan_inputs=2,
        body=subgraph,
    )
    _add_last(graph, carried)
    return by_time[-1]


def _add_last(graph: GraphBuilder, names: Sequence[str]) -> None:
    """`<state>_out` [B, H]: `<state>_by_time` [T, B, H] at each row's last token."""
    if not names:
        return
    graph.add("Shape", ["lengths"], "rows_shape")
    graph.add("Squeeze", ["rows_shape", "axis_0"], "row_count")
    graph.add("Range", ["zero", "row_count", "one"], "row_numbers")
    graph.add("Sub", ["lengths_64", "one"], "last_times")
    columns = [
        graph.add("Unsqueeze", [x, "axis_1"], f"{x}_column") for x in ("last_times", "row_numbers")
    ]
    graph.add("Concat", columns, "last_places", axis=1)  # [B, 2]
    for name in names:
        graph.add("GatherND", [f"{name}_by_time", "last_places"], f"{name}_out")


def add_step(graph: GraphBuilder, model: ForwardLayers, step: Step) -> str:
    """One step without a Scan; returns the last layer's outputs [B, H].

    Reads `tokens` [B] and the states, and writes `<state>_out`.
    """
    states = model.state_names
    body = GraphBuilder()
    graph.add("Gather", ["table", "tokens"], "projected")  # [B, G·H]
    output = step(body, "projected")
    # The step names states as in a Scan's body; here they are the graph's inputs and outputs.
    renamed = {f"{name}_before": name for name in states}
    renamed |= {f"{name}_new": f"{name}_out" for name in states}
    body.rename(renamed)
    graph.nodes.extend(body.nodes)
    return renamed.get(output, output)


def add_cell(body: GraphBuilder, cell: str, i: int, sums: str, recurrent: str = "") -> str:
    """The cell of layer i, given the sums of its gates; returns its output `h<i>_new` [B, H].

    `sums` [B, G·H] is the whole, except for a GRU: there it is the input's part, and `recurrent`
    the state's, whose candidate the reset gate scales (with the constants `candidate_bias<i>` and
    `gates_and_candidate`). Reads the states `<state>_before` and writes `<state>_new`.
    """
    if cell == "rnn":
        return body.add("Tanh", [sums], f"h{i}_new")
    if cell == "gru":
        return _add_gru(body, i, sums, recurrent)
    gate_sums = [f"{gate}{i}_sum" for gate in LSTM_GATES]
    body.add("Split", [sums], *gate_sums, axis=-1, num_outputs=len(gate_sums))
    return add_lstm(body, i, gate_sums)


def add_lstm(body: GraphBuilder, i: int, gate_sums: Sequence[str]) -> str:
    """The LSTM of layer i, given the sums [B, H] of each of `LSTM_GATES`; like `add_cell`."""
    sums = dict(zip(LSTM_GATES, gate_sums, strict=True))
    gate = {x: body.add("Sigmoid", [sums[x]], f"{x}{i}") for x in ("in", "forget", "out")}
    candidate = body.add("Tanh", [sums["candidate"]], f"candidate{i}")
    kept = body.add("Mul", [gate["forget"], f"c{i}_before"], f"kept{i}")
    added = body.add("Mul", [gate["in"], candidate], f"added{i}")
    c = body.add("Add", [kept, added], f"c{i}_new")
    squashed = body.add("Tanh", [c], f"squashed{i}")
    return body.add("Mul", [gate["out"], squashed], f"h{i}_new")


def _add_gru(body: GraphBuilder, i: int, sums: str, recurrent: str) -> str:
    h = f"h{i}_before"
    for name, whole in (("input", sums), ("recurrent", recurrent)):
        parts = (f"{name}_gates{i}", f"{name}_candidate{i}")
        body.add("Split", [whole, "gates_and_candidate"], *parts, axis=-1)
    gate_sums = body.add("Add", [f"input_gates{i}", f"recurrent_gates{i}"], f"gate_sums{i}")
    gates = body.add("Sigmoid", [gate_sums], f"gates{i}")
    body.add("Split", [gates], f"reset{i}", f"update{i}", axis=-1, num_outputs=2)
    biased = body.add("Add", [f"recurrent_candidate{i}", f"candidate_bias{i}"], f"biased{i}")
    scaled = body.add("Mul", [f"reset{i}", biased], f"scaled{i}")
    candidate_sum = body.add("Add", [f"input_candidate{i}", scaled], f"candidate_sum{i}")
    candidate = body.add("Tanh", [candidate_sum], f"candidate{i}")
    # h' = n + z (h - n), which is (1 - z) n + z h with one multiplication fewer.
    difference = body.add("Sub", [h, candidate], f"difference{i}")
    kept = body.add("Mul", [f"update{i}", difference], f"kept{i}")
    return body.add("Add", [candidate, kept], f"h{i}_new")


def add_gru_split(graph: GraphBuilder, hidden_size: int) -> None:
    """The constant that splits a GRU's sums into gates and candidate."""
    graph.constant("gates_and_candidate", np.array([2 * hidden_size, hidden_size], np.int64))


def _add_int8_layer(body: GraphBuilder, cell: str, i: int, x: str, *, is_carried: bool) -> str:
    if cell == "gru":
        if i:
            product = int8_product(body, int8_steps(body, x, f"input{i}_steps"), f"input{i}")
            x = body.add("Add", [product, f"bias{i}"], f"input{i}_sum")
        steps = int8_steps(body, f"h{i}_before", f"h{i}_steps")
        return add_cell(body, cell, i, x, int8_product(body, steps, f"recurrent{i}"))
    if not is_carried:
        int8_steps(body, f"h{i}_before", f"h{i}_steps")
        below = int8_steps(body, x, f"input{i}_steps") if i else ""
        return add_cell(body, cell, i, _total(body, i, x, below))
    h = add_cell(body, cell, i, _total(body, i, x, f"h{i - 1}_steps_next"))
    int8_steps(body, h, f"h{i}_steps_next")
    return h


def _total(body: GraphBuilder, i: int, x: str, below: str) -> str:
    """The sums [B, G·H] of an rnn or lstm layer, with one integer product.

    The first layer adds `x`; the others multiply the steps of the layer `below`.
    """
    steps = f"h{i}_steps"
    if i:
        steps = body.add("Concat", [below, steps], f"both{i}_steps", axis=-1)
        x = f"bias{i}"
    return body.add("Add", [int8_product(body, steps, f"recurrent{i}"), x], f"total{i}")


def add_time_mask(graph: GraphBuilder) -> None:
    """`inside_by_time` [T, B, 1]: true inside the row's length."""
    graph.constant("zero", np.array(0, np.int64))
    graph.constant("one", np.array(1, np.int64))
    graph.add("Shape", ["tokens_by_time"], "time_shape", start=0, end=1)
    graph.add("Squeeze", ["time_shape", "axis_0"], "time")
    graph.add("Range", ["zero", "time", "one"], "times")
    graph.add("Unsqueeze", ["times", "axis_1"], "times_column")  # [T, 1]
    graph.add("Cast", ["lengths"], "lengths_64", to=TensorProto.INT64)
    graph.add("Less", ["times_column", "lengths_64"], "inside_length")  # [T, B]
    graph.add("Unsqueeze", ["inside_length", "axis_2"], "inside_by_time")
