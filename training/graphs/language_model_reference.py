"""The reference of a language model's eight-bit graphs, in double precision.

B batch, T time, V vocabulary, H hidden, G gates of the cell.

It is written from the formulas, independently of the graphs that are checked against it.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from training.graphs.quantization import (
    QuantizedLayer,
    candidate_bias,
    input_bias,
    input_table,
    quantized_product,
)
from training.graphs.reference_cell import cell_step
from training.networks.language_model import LanguageModel
from training.networks.mixture import AnyLanguageModel, mixed
from training.networks.ngram import NGram
from training.networks.recurrent import STATE_NAMES, ForwardLayers, RecurrentLayer, States


def reference_logprobs(
    model: AnyLanguageModel, tokens: Tensor, states: Sequence[Tensor]
) -> tuple[Tensor, States]:
    """log p [B, T, V] after each of `tokens` [B, T] of the quantized model, in double precision.

    If a value lies halfway between two steps of h, but for rounding, the graph and the reference
    can take different steps. Of an n-gram nothing is quantized.
    """
    logprobs, steps = reference_steps(model, tokens, states)
    return logprobs, steps[-1]


def reference_steps(
    model: AnyLanguageModel, tokens: Tensor, states: Sequence[Tensor]
) -> tuple[Tensor, list[States]]:
    """The same log p, and the states before each of the tokens and after the last, [T + 1]."""
    logits: list[Tensor] = []
    steps: list[States] = [() for _ in range(tokens.shape[1] + 1)]
    start = 0
    for network in model.networks:
        end = start + len(network.state_names)
        hidden, own = network_steps(network, tokens, states[start:end])
        output = network.output
        logits.append((hidden @ output.weight.double().T + output.bias.double()).detach())
        steps = [before + new for before, new in zip(steps, own, strict=True)]
        start = end
    probs = None
    if model.ngram is not None:
        probs, own = _ngram_steps(model.ngram, tokens, states[start:])
        steps = [before + new for before, new in zip(steps, own, strict=True)]
    if probs is None and len(logits) == 1:
        return torch.log_softmax(logits[0], dim=-1), steps
    return mixed(logits, probs, model.weights, model.exponent), steps


def reference_hidden(
    model: LanguageModel, tokens: Tensor, states: Sequence[Tensor]
) -> tuple[Tensor, States]:
    """What the output layer reads, [B, T, H], after each of `tokens` [B, T], and the states."""
    hidden, steps = network_steps(model, tokens, states)
    return hidden, steps[-1]


def network_steps(
    model: ForwardLayers, tokens: Tensor, states: Sequence[Tensor]
) -> tuple[Tensor, list[States]]:
    """What an output layer reads, [B, T, H], and the network's states like `reference_steps`."""
    cell = model.config.cell
    layers = model.recurrent_layers
    quantized = [QuantizedLayer.of(cell, x, first=i == 0) for i, x in enumerate(layers)]
    table = torch.from_numpy(input_table(model)).double()
    per_layer = len(STATE_NAMES[cell])
    current = [state.double() for state in states]
    outputs, steps = [], [tuple(current)]
    for t in range(tokens.shape[1]):
        x = table[tokens[:, t]]  # [B, G·H]
        for i, (layer, matrices) in enumerate(zip(layers, quantized, strict=True)):
            own = slice(i * per_layer, (i + 1) * per_layer)
            if i:
                x = _input_sums(cell, layer, matrices, x, current[own][0])
            recurrent = None
            if cell == "gru":
                recurrent = quantized_product(current[own][0], matrices.recurrent)
                bias = torch.from_numpy(candidate_bias(layer)).double()
                recurrent[:, -len(bias) :] += bias
            elif i == 0:
                x = x + quantized_product(current[own][0], matrices.recurrent)
            current[own] = cell_step(cell, x, current[own], recurrent)
            x = current[own][0]
        outputs.append(x)
        steps.append(tuple(current))
    return torch.stack(outputs, dim=1), steps


def _ngram_steps(
    model: NGram, tokens: Tensor, states: Sequence[Tensor]
) -> tuple[Tensor, list[States]]:
    """An n-gram's probabilities [B, T, V], and its states like `reference_steps`."""
    exact = copy.deepcopy(model).double()
    current: States = tuple(state.double() for state in states)
    outputs, steps = [], [current]
    for t in range(tokens.shape[1]):
        found, current = exact.probabilities(tokens[:, t : t + 1], current)
        outputs.append(found)
        steps.append(current)
    return torch.cat(outputs, dim=1), steps


def _input_sums(
    cell: str, layer: RecurrentLayer, matrices: QuantizedLayer, x: Tensor, h: Tensor
) -> Tensor:
    """Sums [B, G·H] above the first layer; they include the recurrent product, except a GRU's."""
    bias = torch.from_numpy(input_bias(cell, layer)).double()
    if matrices.inputs is not None:
        return quantized_product(x, matrices.inputs) + bias
    return quantized_product(torch.cat([x, h], dim=1), matrices.recurrent) + bias
