"""Recurrent layers composed of small operators: one step, or a Scan over steps.

B batch, T time, H hidden, G gates of the cell (rnn 1, gru 3, lstm 4).

A step is written once and used twice, as the step graph and as the body of the sequence graph's
Scan: the same operators on the same numbers, so the two agree bit for bit (except for the sign of a
zero, which onnxruntime's `Where` drops). Every operator computes a row from that row alone.
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


def int8_step(graph: GraphBuilder, model: ForwardLayers) -> Step:
    """Any cell with eight-bit products; its weights go to `graph`."""
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
            x = _add_int8_layer(body, cell, i, x)
        return x

    return step


def add_scan(graph: GraphBuilder, model: ForwardLayers, step: Step) -> str:
    """A Scan of the step over time; returns the last layer's outputs [T, B, H].

    Reads `tokens_by_time` [T, B], `lengths` [B] and the states, and writes `<state>_out`. Past a
    row's length its states no longer change.
    """
    add_time_mask(graph)
    graph.add("Gather", ["table", "tokens_by_time"], "projected_by_time")  # [T, B, G·H]
    hidden, states = model.config.hidden_size, model.state_names
    body = GraphBuilder()
    output = step(body, "projected")
    for name in states:
        body.add("Where", ["inside", f"{name}_new", f"{name}_before"], f"{name}_next")
    body.add("Identity", [output], "output")

    def vector(name: str, size: int | None = hidden) -> ValueInfo:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", size])

    subgraph = helper.make_graph(
        body.nodes,
        "step",
        [
            *(vector(f"{name}_before") for name in states),
            vector("projected", None),
            helper.make_tensor_value_info("inside", TensorProto.BOOL, ["B", 1]),
        ],
        [*(vector(f"{name}_next") for name in states), vector("output")],
    )
    graph.add(
        "Scan",
        [*states, "projected_by_time", "inside_by_time"],
        *(f"{name}_out" for name in states),
        "outputs_by_time",
        num_scan_inputs=2,
        body=subgraph,
    )
    return "outputs_by_time"


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


def _add_int8_layer(body: GraphBuilder, cell: str, i: int, x: str) -> str:
    if cell != "gru":
        return add_cell(body, cell, i, _total(body, i, x))
    if i:
        product = int8_product(body, int8_steps(body, x, f"input{i}_steps"), f"input{i}")
        x = body.add("Add", [product, f"bias{i}"], f"input{i}_sum")
    steps = int8_steps(body, f"h{i}_before", f"h{i}_steps")
    return add_cell(body, cell, i, x, int8_product(body, steps, f"recurrent{i}"))


def _total(body: GraphBuilder, i: int, x: str) -> str:
    """The sums [B, G·H] of an rnn or lstm layer, with one integer product."""
    steps = int8_steps(body, f"h{i}_before", f"h{i}_steps")
    if i:
        inputs = int8_steps(body, x, f"input{i}_steps")
        steps = body.add("Concat", [inputs, steps], f"both{i}_steps", axis=-1)
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
