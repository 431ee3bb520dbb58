"""One step of each cell, written from its formulas; both references use it.

B batch, H hidden, G gates of the cell (rnn 1, gru 3, lstm 4), in torch's order.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def cell_step(
    cell: str, sums: Tensor, states: Sequence[Tensor], recurrent: Tensor | None = None
) -> list[Tensor]:
    """A layer's states [B, H] after a step, given the sums of its gates, biases included.

    `sums` [B, G·H] is the whole, except for a GRU: there it is the input's part, and `recurrent`
    [B, G·H] the state's, whose candidate the reset gate scales.
    """
    if cell == "rnn":
        return [torch.tanh(sums)]
    if cell == "lstm":
        i, f, g, o = sums.chunk(4, dim=1)
        c = torch.sigmoid(f) * states[1] + torch.sigmoid(i) * torch.tanh(g)
        return [torch.sigmoid(o) * torch.tanh(c), c]
    if recurrent is None:
        raise ValueError("a gru needs the state's part separately")
    r_x, z_x, n_x = sums.chunk(3, dim=1)
    r_h, z_h, n_h = recurrent.chunk(3, dim=1)
    r, z = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
    n = torch.tanh(n_x + r * n_h)
    return [n + z * (states[0] - n)]
