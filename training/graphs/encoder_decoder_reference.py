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

from training.graphs.builder import array
from training.graphs.interface import has_source_table, has_target_table
from training.graphs.quantization import STATE_STEPS, QuantizedMatrix, quantized_product
from training.graphs.reference_cell import cell_step
from training.networks.attention import Memory
from training.networks.encoder_decoder import EncoderDecoder
from training.networks.recurrent import STATE_NAMES, RecurrentLayer


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
    if not has_source_table(model):
        encoder.embedding.weight.copy_(_stored(encoder.embedding.weight))
        layer = encoder.bidirectional_layers[0]
        for weight in (layer.forwards.weight_ih, layer.backwards.weight_ih):
            weight.copy_(_stored(weight))
    if not has_target_table(model):
        decoder.embedding.weight.copy_(_stored(decoder.embedding.weight))
        if not model.config.tie_embeddings:
            decoder.output.weight.copy_(_stored(decoder.output.weight))
        own = decoder.recurrent_layers[0].weight_ih[:, : model.config.embedding_dim]
        own.copy_(_stored(own))
    return exact


def _stored(weight: Tensor) -> Tensor:
    """`weight` [n, K] with one scale a row."""
    matrix = QuantizedMatrix.of(array(weight.float()).T)
    return torch.from_numpy(matrix.values.T).double() * torch.from_numpy(matrix.scale[:, None])


def _encode(
    model: EncoderDecoder, exact: EncoderDecoder, sources: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The last layer's outputs [B, M, D], their mask [B, M], and the last states [B, D]."""
    x = exact.encoder.embedding(sources.t())  # [S, B, E]
    if exact.encoder.convolutions is not None:
        x, lengths = exact.encoder.convolutions(x, lengths)
    inside = torch.arange(len(x)).unsqueeze(1) < lengths  # [M, B]
    last: list[Tensor] = []
    first = exact.encoder.bidirectional_layers[0]
    for i, layer in enumerate(model.encoder.bidirectional_layers):
        outputs, last = [], []
        for direction in (layer.forwards, layer.backwards):
            if i:
                sums = _product(x, direction.weight_ih)
            else:
                own = first.forwards if direction is layer.forwards else first.backwards
                sums = x @ own.weight_ih.T
            steps = range(len(x)) if direction is layer.forwards else reversed(range(len(x)))
            found, end = _run(layer.cell, direction, sums, inside, list(steps))
            outputs.append(found)
            last.append(end)
        x = torch.cat(outputs, dim=2)
    return x.transpose(0, 1), inside.t(), torch.cat(last, dim=1)


def _run(
    cell: str, layer: RecurrentLayer, sums: Tensor, inside: Tensor, steps: list[int]
) -> tuple[Tensor, Tensor]:
    """Outputs [M, B, H] of one direction, and its last h [B, H], from its inputs' `sums`."""
    hidden = layer.weight_hh.shape[1]
    states = [sums.new_zeros(sums.shape[1], hidden) for _ in STATE_NAMES[cell]]
    outputs = sums.new_zeros(*sums.shape[:2], hidden)
    for t in steps:
        after = _layer(cell, layer, states, plain=sums[t], bounded=[])
        outputs[t] = after[0]
        kept = inside[t].unsqueeze(1)
        states = [torch.where(kept, *pair) for pair in zip(after, states, strict=True)]
    return outputs, states[0]


def _attended(model: EncoderDecoder, values: Tensor, mask: Tensor, summary: Tensor) -> Memory:
    """The memory; its values [B, M, R] are already multiplied by the readout's weights."""
    attention = model.decoder.attention
    if attention is None:
        return Memory(values, values, mask, summary)
    if attention.kind == "dot":
        keys = torch.round(values * STATE_STEPS) / STATE_STEPS
    else:
        keys = _product(values, attention.key.weight)
    weight = model.decoder.readout.weight[:, : values.shape[2]]
    return Memory(_product(values, weight), keys, mask, summary)


def _initial_states(model: EncoderDecoder, summary: Tensor) -> list[Tensor]:
    states = []
    for name, bridge in model.decoder.bridges.items():
        weight, bias = bridge.parameters()
        state = _product(summary, weight) + bias.double()
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
        after += _layer(config.cell, layer, own, plain=plain, bounded=bounded)
        x = after[i * per_layer]
    attended = 0 if decoder.attention is None else 2 * config.encoder_hidden_size
    weight = model.decoder.readout.weight[:, attended:]
    total = _product(x, weight) + decoder.readout.bias
    if decoder.attention is not None:
        weights = decoder.attention(x.unsqueeze(1), memory)  # [B, 1, M]
        total = total + (weights @ memory.values).squeeze(1)
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
    """A layer's states after a step.

    `plain` [B, G·H] are sums that the caller has computed: the token's in the decoder's first
    layer, the whole input's in an encoder's layer. `bounded` inputs are multiplied here.
    """
    bias_ih, bias_hh = (x.detach().double() for x in (layer.bias_ih, layer.bias_hh))
    width = sum(x.shape[1] for x in bounded)
    own = layer.weight_ih[:, layer.weight_ih.shape[1] - width :]
    h = states[0]
    plain = torch.zeros_like(bias_ih) if plain is None else plain
    if cell == "gru":
        inputs = plain + bias_ih
        if bounded:
            inputs = inputs + _product(torch.cat(tuple(bounded), dim=1), own)
        return cell_step(cell, inputs, states, _product(h, layer.weight_hh) + bias_hh)
    # One matrix, and so one scale a column, for all bounded inputs.
    weight = torch.cat((own, layer.weight_hh), dim=1) if bounded else layer.weight_hh
    total = plain + _product(torch.cat((*bounded, h), dim=1), weight) + bias_ih + bias_hh
    return cell_step(cell, total, states)


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """`x` [.., K], whose values lie in [-1, 1], times `weight` [n, K] in eight bits."""
    return quantized_product(x, QuantizedMatrix.of(array(weight).T))
