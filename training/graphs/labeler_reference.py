"""The reference of a labeler's eight-bit graph, in double precision, written from the formulas.

B batch, S places, D width of the outputs, L labels.

The recurrent products are quantized, and so are the outputs that pooling and the output layer read.
Attention's keys are a quantized product; its sums and the output layer are not.
"""

import copy

import torch
from torch import Tensor

from service.bundle.labeler import FORBIDDEN
from training.graphs.labeler import ForwardPart
from training.graphs.language_model_reference import network_steps
from training.graphs.quantization import STATE_STEPS
from training.graphs.stack import Stack
from training.graphs.stack_reference import eight_bit_product, read_layers, stored
from training.networks.encoder import BidirectionalLayers
from training.networks.labeler import AttentionPooling, Labeler
from training.networks.recurrent import RecurrentLayers


@torch.no_grad()
def reference_logits(model: Labeler, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Logits [B, L] of texts `tokens` [B, S] of `lengths` [B], or [B, S, L] of their places."""
    layers = model.layers
    exact = copy.deepcopy(model).double().eval()
    if isinstance(layers, BidirectionalLayers):
        x = _read(model, layers, tokens, lengths)
    else:
        x = _read_on(model, layers, tokens)
    logits = x @ exact.output.weight.T + exact.output.bias
    if model.allowed is not None:
        logits = logits + torch.where(model.allowed[tokens], 0.0, FORBIDDEN)
    return logits


def _read(model: Labeler, layers: BidirectionalLayers, tokens: Tensor, lengths: Tensor) -> Tensor:
    """What the output layer reads of texts that are read from both ends, [B, D] or [B, S, D]."""
    embedding = model.embedding.weight.double()
    all_layers = layers.bidirectional_layers
    first = copy.deepcopy(all_layers[0]).double()
    if not Stack(layers=all_layers, embedding=model.embedding).has_table:
        embedding = stored(model.embedding.weight)
        for direction in (first.forwards, first.backwards):
            direction.weight_ih.copy_(stored(direction.weight_ih))
    inside = torch.arange(tokens.shape[1]).unsqueeze(1) < lengths  # [S, B]
    x, last = read_layers(all_layers, first, embedding[tokens.t()], inside)  # [S, B, D]
    x = _rounded(x)
    if model.attention is not None:
        return _attended(model.attention, x.transpose(0, 1), inside.t())
    if model.head.pooling == "max":
        return x.masked_fill(~inside.unsqueeze(2), -1.0).amax(dim=0)
    if model.head.pooling == "last":
        return _rounded(torch.cat(last, dim=1))
    return x.transpose(0, 1)


def _attended(attention: AttentionPooling, x: Tensor, inside: Tensor) -> Tensor:
    """The weighted sum [B, D] of `x` [B, S, D]."""
    key = eight_bit_product(x, attention.key.weight) + attention.key.bias.double()
    scores = torch.tanh(key) @ attention.query.double()  # [B, S]
    weights = torch.softmax(scores.masked_fill(~inside, -torch.inf), dim=1)
    return (weights.unsqueeze(1) @ x).squeeze(1)


def _read_on(model: Labeler, layers: RecurrentLayers, tokens: Tensor) -> Tensor:
    """What the output layer reads after each place of texts that are read forward, [B, S, H]."""
    own = ForwardPart(model.config, model.embedding, layers)
    states = model.initial_states(len(tokens))
    x, _ = network_steps(own, tokens, states[: len(own.state_names)])  # [B, S, H]
    if model.head.pooling == "max":
        x = torch.cummax(x, dim=1).values.clamp(min=0.0)
    return x


def _rounded(x: Tensor) -> Tensor:
    """The nearest of a state's steps."""
    return torch.round(x * STATE_STEPS) / STATE_STEPS
