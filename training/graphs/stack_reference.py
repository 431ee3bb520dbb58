"""The references of bidirectional layers in eight bits, in double precision, from the formulas.

B batch, M positions, D width of the outputs, H hidden, G gates of the cell.

Products of bounded values are quantized: of states, and of layers' outputs. The embeddings, and the
weights that multiply them, are at most stored in eight bits.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from training.graphs.builder import array
from training.graphs.quantization import QuantizedMatrix, quantized_product
from training.graphs.reference_cell import cell_step
from training.networks.encoder import BidirectionalLayer
from training.networks.recurrent import STATE_NAMES, RecurrentLayer


def read_layers(
    layers: Sequence[BidirectionalLayer], first: BidirectionalLayer, x: Tensor, inside: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """The last layer's outputs [M, B, D] of `x` [M, B, …], and each direction's last h [B, H].

    `first` has the input's weights of the first layer in double precision. `inside` [M, B] says
    which positions are a row's own.
    """
    last: list[Tensor] = []
    for i, layer in enumerate(layers):
        outputs, last = [], []
        for direction in (layer.forwards, layer.backwards):
            if i:
                sums = eight_bit_product(x, direction.weight_ih)
            else:
                own = first.forwards if direction is layer.forwards else first.backwards
                sums = x @ own.weight_ih.T
            steps = range(len(x)) if direction is layer.forwards else reversed(range(len(x)))
            found, end = _run(layer.cell, direction, sums, inside, list(steps))
            outputs.append(found)
            last.append(end)
        x = torch.cat(outputs, dim=2)
    return x, last


def _run(
    cell: str, layer: RecurrentLayer, sums: Tensor, inside: Tensor, steps: list[int]
) -> tuple[Tensor, Tensor]:
    """Outputs [M, B, H] of one direction, and its last h [B, H], from its inputs' `sums`."""
    hidden = layer.weight_hh.shape[1]
    states = [sums.new_zeros(sums.shape[1], hidden) for _ in STATE_NAMES[cell]]
    outputs = sums.new_zeros(*sums.shape[:2], hidden)
    for t in steps:
        after = layer_states(cell, layer, states, plain=sums[t], bounded=[])
        outputs[t] = after[0]
        kept = inside[t].unsqueeze(1)
        states = [torch.where(kept, *pair) for pair in zip(after, states, strict=True)]
    return outputs, states[0]


def layer_states(
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
            inputs = inputs + eight_bit_product(torch.cat(tuple(bounded), dim=1), own)
        return cell_step(cell, inputs, states, eight_bit_product(h, layer.weight_hh) + bias_hh)
    # One matrix, and so one scale a column, for all bounded inputs.
    weight = torch.cat((own, layer.weight_hh), dim=1) if bounded else layer.weight_hh
    total = plain + eight_bit_product(torch.cat((*bounded, h), dim=1), weight) + bias_ih + bias_hh
    return cell_step(cell, total, states)


def eight_bit_product(x: Tensor, weight: Tensor) -> Tensor:
    """`x` [.., K], whose values lie in [-1, 1], times `weight` [n, K] in eight bits."""
    return quantized_product(x, QuantizedMatrix.of(array(weight).T))


def stored(weight: Tensor) -> Tensor:
    """`weight` [n, K] with one scale a row."""
    matrix = QuantizedMatrix.of(array(weight.float()).T)
    return torch.from_numpy(matrix.values.T).double() * torch.from_numpy(matrix.scale[:, None])
