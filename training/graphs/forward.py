"""Recurrent layers that read forward from explicit states, over whole rows of tokens.

B batch, T time, V vocabulary, E embedding, H hidden, G gates of the cell.

In single precision LSTM and GRU are ONNX's own operators, which gave bit-identical rows for every
batch size, row position, chunking and raggedness tried; the sequence graph serves single steps too.
onnxruntime's RNN operator did not (a batch of one uses another matrix kernel), so the tanh RNN is a
Scan over MatMul and Tanh, which did and is also faster in batches. In eight bits every cell is
composed of small operators, and a step graph avoids the cost of a Scan of one step.
"""

import numpy as np

from service.bundle.manifest import Precision
from training.graphs.builder import GraphBuilder, array, reordered_gates
from training.graphs.cells import add_scan, carried_states, float_rnn_step, int8_step
from training.networks.recurrent import STATE_NAMES, ForwardLayers


def add_forward(graph: GraphBuilder, model: ForwardLayers, precision: Precision) -> str:
    """The last layer's outputs [B, T, H] for `tokens` [B, T]; writes `<state>_out`.

    Past a row's length its outputs mean nothing, and its states no longer change.
    """
    graph.add("Transpose", ["tokens"], "tokens_by_time", perm=[1, 0])  # [T, B]
    if precision == "int8":
        carried = carried_states(model)
        outputs_by_time = add_scan(graph, model, int8_step(graph, model, carried), carried)
    elif model.config.cell == "rnn":
        outputs_by_time = add_scan(graph, model, float_rnn_step(graph, model))
    else:
        outputs_by_time = _add_operators(graph, model)
    return graph.add("Transpose", [outputs_by_time], "outputs", perm=[1, 0, 2])  # [B, T, H]


def _add_operators(graph: GraphBuilder, model: ForwardLayers) -> str:
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
