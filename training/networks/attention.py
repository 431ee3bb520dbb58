"""Attention: which parts of a source a decoder looks at.

B batch, T target positions, M memory positions, H hidden, A attention, D width of the memory.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

_MIN_LOGIT = torch.finfo(torch.float32).min


@dataclass(frozen=True, slots=True)
class Memory:
    """A source that the encoder has read."""

    values: Tensor  # [B, M, D]
    keys: Tensor  # [B, M, A] what queries are compared with
    mask: Tensor  # [B, M] true inside the source
    summary: Tensor  # [B, D] the last forward and the first backward state


class Attention(nn.Module):
    """How much each memory position matters to a decoder state.

    `dot` h·v and `general` h·(W v) after Luong et al. 2015; `additive` u·tanh(W_h h + W_v v) after
    Bahdanau et al. 2015, here with the decoder's new state, as Luong does.
    """

    def __init__(self, kind: str, hidden_size: int, memory_size: int) -> None:
        super().__init__()
        self.kind = kind
        if kind != "dot":
            self.key = nn.Linear(memory_size, hidden_size, bias=False)
            nn.init.xavier_uniform_(self.key.weight)
        if kind == "additive":
            self.query = nn.Linear(hidden_size, hidden_size)
            self.score = nn.Linear(hidden_size, 1, bias=False)

    def keys(self, values: Tensor) -> Tensor:
        """What queries are compared with: [B, M, A] of `values` [B, M, D]."""
        keys: Tensor = values if self.kind == "dot" else self.key(values)
        return keys

    def forward(self, queries: Tensor, memory: Memory) -> Tensor:
        """Weights [B, T, M] of `queries` [B, T, H]."""
        if self.kind == "additive":
            sums = self.query(queries).unsqueeze(2) + memory.keys.unsqueeze(1)  # [B, T, M, A]
            scores = self.score(torch.tanh(sums)).squeeze(3)
        else:
            scores = queries @ memory.keys.transpose(1, 2)  # [B, T, M]
        scores = scores.masked_fill(~memory.mask.unsqueeze(1), _MIN_LOGIT)
        return torch.softmax(scores, dim=2)
