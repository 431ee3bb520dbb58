"""The reference of the eight-bit graphs, in double precision, written from the formulas.

B batch, S source positions, M memory positions, T target positions, V target vocabulary, D width of
the memory, R readout, G gates of the cell, H hidden.

Products of bounded values are quantized: of states, of layers' outputs, and of the readout that is
fed back. Embeddings without a table, and the weights that multiply them, are only stored in eight
bits; convolutions, attention and the output are not quantized.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from training.graphs.interface import has_target_table, source_stack
from training.graphs.quantization import STATE_STEPS
from training.graphs.stack_reference import eight_bit_product, layer_states, read_layers, stored
from training.networks.attention import Memory
from training.networks.encoder_decoder import EncoderDecoder
from training.networks.recurrent import STATE_NAMES


@torch.no_grad()
def reference_logprobs(
    model: EncoderDecoder, sources: Tensor, lengths: Tensor, tokens: Tensor
) -> Tensor:
    """log p [B, T, V] after each of `tokens` [B, T] with the bounded products in eight bits."""
    exact = _with_stored_weights(model)
    values, mask, summary = _encode(model, exact, sources, lengths)
    memory = _attended(model, values, mask, summary)
    states = _initial_states(model, summary)
    steps = []
    for t in range(tokens.shape[1]):
        logits, states = _step(model, exact, tokens[:, t], states, memory)
        steps.append(torch.log_softmax(logits, dim=1))
    return torch.stack(steps, dim=1)


def _with_stored_weights(model: EncoderDecoder) -> EncoderDecoder:
    """A copy in double precision; weights that are only stored in eight bits are rounded."""
    exact = copy.deepcopy(model).double().eval()
    encoder, decoder = exact.encoder, exact.decoder
    if not source_stack(model).has_table:
        encoder.embedding.weight.copy_(stored(encoder.embedding.weight))
        layer = encoder.bidirectional_layers[0]
        for weight in (layer.forwards.weight_ih, layer.backwards.weight_ih):
            weight.copy_(stored(weight))
    if not has_target_table(model):
        decoder.embedding.weight.copy_(stored(decoder.embedding.weight))
        if not model.config.tie_embeddings:
            decoder.output.weight.copy_(stored(decoder.output.weight))
        own = decoder.recurrent_layers[0].weight_ih[:, : model.config.embedding_dim]
        own.copy_(stored(own))
    return exact


def _encode(
    model: EncoderDecoder, exact: EncoderDecoder, sources: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The last layer's outputs [B, M, D], their mask [B, M], and the last states [B, D]."""
    x = exact.encoder.embedding(sources.t())  # [S, B, E]
    if exact.encoder.convolutions is not None:
        x, lengths = exact.encoder.convolutions(x, lengths)
    inside = torch.arange(len(x)).unsqueeze(1) < lengths  # [M, B]
    first = exact.encoder.bidirectional_layers[0]
    x, last = read_layers(model.encoder.bidirectional_layers, first, x, inside)
    return x.transpose(0, 1), inside.t(), torch.cat(last, dim=1)


def _attended(model: EncoderDecoder, values: Tensor, mask: Tensor, summary: Tensor) -> Memory:
    """The memory; its values [B, M, R] are already multiplied by the readout's weights."""
    attention = model.decoder.attention
    if attention is None:
        return Memory(values, values, mask, summary)
    if attention.kind == "dot":
        keys = torch.round(values * STATE_STEPS) / STATE_STEPS
    else:
        keys = eight_bit_product(values, attention.key.weight)
    weight = model.decoder.readout.weight[:, : values.shape[2]]
    return Memory(eight_bit_product(values, weight), keys, mask, summary)


def _initial_states(model: EncoderDecoder, summary: Tensor) -> list[Tensor]:
    states = []
    for name, bridge in model.decoder.bridges.items():
        weight, bias = bridge.parameters()
        state = eight_bit_product(summary, weight) + bias.double()
        states.append(torch.tanh(state) if name.startswith("h") else state)
    if model.config.input_feeding:
        states.append(summary.new_zeros(len(summary), model.decoder.readout_size))
    return states


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
        after += layer_states(config.cell, layer, own, plain=plain, bounded=bounded)
        x = after[i * per_layer]
    attended = 0 if decoder.attention is None else 2 * config.encoder_hidden_size
    weight = model.decoder.readout.weight[:, attended:]
    total = eight_bit_product(x, weight) + decoder.readout.bias
    if decoder.attention is not None:
        weights = decoder.attention(x.unsqueeze(1), memory)  # [B, 1, M]
        total = total + (weights @ memory.values).squeeze(1)
    readout = torch.tanh(total)
    if config.input_feeding:
        after.append(readout)
    return decoder.output(readout), after
