"""The reference of the eight-bit decoder, in double precision, written from the formulas.

B batch, S source positions, M memory positions, T target positions, V target vocabulary.
"""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from training.encoder_decoder import EncoderDecoder, Memory
from training.language_model import GATES, STATE_NAMES, RecurrentLayer
from training.quantization import QuantizedMatrix, quantized_product


@torch.no_grad()
def reference_logprobs(
    model: EncoderDecoder, sources: Tensor, lengths: Tensor, tokens: Tensor
) -> Tensor:
    """log p [B, T, V] after each of `tokens` [B, T] with the decoder's products in eight bits.

    The products of states, of layers' outputs and of the readout that is fed back are quantized;
    embeddings, attention and the output are not. The encoder is in double precision.
    """
    exact = copy.deepcopy(model).double().eval()
    memory = exact.encode(sources, lengths)
    states = list(exact.decoder.initial_states(memory.summary))
    steps = []
    for t in range(tokens.shape[1]):
        logits, states = _step(model, exact, tokens[:, t], states, memory)
        steps.append(torch.log_softmax(logits, dim=1))
    return torch.stack(steps, dim=1)


def _step(
    model: EncoderDecoder,
    exact: EncoderDecoder,
    token: Tensor,
    states: Sequence[Tensor],
    memory: Memory,
) -> tuple[Tensor, list[Tensor]]:
    """Logits [B, V], and the states after."""
    config, decoder = model.config, exact.decoder
    per_layer = len(STATE_NAMES[config.cell])
    x = decoder.embedding(token)  # [B, E]
    after: list[Tensor] = []
    for i, layer in enumerate(model.decoder.recurrent_layers):
        own = states[i * per_layer : (i + 1) * per_layer]
        bounded = [x] if i else [states[-1]] if config.input_feeding else []
        plain = None if i else x @ exact.decoder.recurrent_layers[0].weight_ih[:, : x.shape[1]].T
        after += _layer(config.cell, layer, own, plain=plain, bounded=bounded)
        x = after[i * per_layer]
    attended = 0 if decoder.attention is None else 2 * config.encoder_hidden_size
    weight = model.decoder.readout.weight.detach().numpy()
    total = quantized_product(x, QuantizedMatrix.of(weight[:, attended:].T)) + decoder.readout.bias
    if decoder.attention is not None:
        weights = decoder.attention(x.unsqueeze(1), memory)  # [B, 1, M]
        context = (weights @ memory.values).squeeze(1)
        total = total + context @ decoder.readout.weight[:, :attended].T
    readout = torch.tanh(total)
    if config.input_feeding:
        after.append(readout)
    return decoder.output(readout), after


def _layer(
    cell: str,
    layer: RecurrentLayer,
    states: Sequence[Tensor],
    *,
    plain: Tensor | None,
    bounded: Sequence[Tensor],
) -> list[Tensor]:
    """A layer's states after a step; the first one alone has `plain` sums [B, G·H] of the token."""
    weight_ih, weight_hh = (x.detach().numpy() for x in (layer.weight_ih, layer.weight_hh))
    bias_ih, bias_hh = (x.detach().double() for x in (layer.bias_ih, layer.bias_hh))
    width = sum(x.shape[1] for x in bounded)
    own = weight_ih[:, weight_ih.shape[1] - width :]
    h = states[0]
    plain = torch.zeros_like(bias_ih) if plain is None else plain
    if cell == "gru":
        inputs = plain + bias_ih
        if bounded:
            inputs = inputs + quantized_product(torch.cat(tuple(bounded), 1), _of(own.T))
        r_x, z_x, n_x = inputs.chunk(3, dim=1)
        r_h, z_h, n_h = (quantized_product(h, _of(weight_hh.T)) + bias_hh).chunk(3, dim=1)
        r, z = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
        n = torch.tanh(n_x + r * n_h)
        return [n + z * (h - n)]
    # One matrix, and so one scale a column, for all that lies within one.
    matrix = _of(np.concatenate([own, weight_hh], axis=1).T if bounded else weight_hh.T)
    total = plain + quantized_product(torch.cat((*bounded, h), dim=1), matrix) + bias_ih + bias_hh
    if cell == "rnn":
        return [torch.tanh(total)]
    i, f, g, o = total.chunk(GATES[cell], dim=1)
    c = torch.sigmoid(f) * states[1] + torch.sigmoid(i) * torch.tanh(g)
    return [torch.sigmoid(o) * torch.tanh(c), c]


def _of(weight: "np.typing.NDArray[np.float32]") -> QuantizedMatrix:
    return QuantizedMatrix.of(np.ascontiguousarray(weight))
