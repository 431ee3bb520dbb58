"""A linear-chain CRF: labels of neighbouring places depend on each other (Lafferty et al. 2001).

B batch, T places, L labels. Everything is summed exactly, in log space.
"""

import torch
from torch import Tensor, nn


class LinearChain(nn.Module):
    """p(y | x) ∝ exp(first[y_1] + Σ scores_i[y_i] + Σ transitions[y_i, y_i+1] + last[y_T])."""

    def __init__(self, num_labels: int) -> None:
        super().__init__()
        self.transitions = nn.Parameter(torch.zeros(num_labels, num_labels))  # [from, to]
        self.first = nn.Parameter(torch.zeros(num_labels))
        self.last = nn.Parameter(torch.zeros(num_labels))

    def log_partition(self, scores: Tensor, lengths: Tensor) -> Tensor:
        """log Z [B] of `scores` [B, T, L]; `lengths` [B] are at least 1."""
        # In products of matrices, which take a fraction of the memory and time of a sum over all
        # pairs of labels. Both factors have 1 as their largest number, so nothing overflows.
        largest = self.transitions.detach().max()
        moves = torch.exp(self.transitions - largest)  # [L, L]
        alpha = self.first + scores[:, 0]  # [B, L]
        for t in range(1, scores.shape[1]):
            most = alpha.detach().amax(dim=1, keepdim=True)
            ways = torch.exp(alpha - most) @ moves  # [B, L]
            following = _log(ways) + (most + largest) + scores[:, t]
            alpha = torch.where((lengths > t).unsqueeze(1), following, alpha)
        return torch.logsumexp(alpha + self.last, dim=1)

    def path_score(self, scores: Tensor, labels: Tensor, lengths: Tensor) -> Tensor:
        """The exponent [B] of the path `labels` [B, T]; past a row's length they are any id."""
        steps = torch.arange(scores.shape[1], device=scores.device)
        inside = steps < lengths.unsqueeze(1)  # [B, T]
        picked = scores.gather(2, labels.unsqueeze(2)).squeeze(2)  # [B, T]
        moves = self.transitions[labels[:, :-1], labels[:, 1:]]  # [B, T - 1]
        end = labels.gather(1, (lengths - 1).unsqueeze(1)).squeeze(1)
        total = (picked * inside).sum(1) + (moves * inside[:, 1:]).sum(1)
        return total + self.first[labels[:, 0]] + self.last[end]

    def logprob(self, scores: Tensor, labels: Tensor, lengths: Tensor) -> Tensor:
        """log p(labels | text) [B]."""
        return self.path_score(scores, labels, lengths) - self.log_partition(scores, lengths)


def _log(x: Tensor) -> Tensor:
    """The logarithm, finite at 0, where a label has no way to it that counts."""
    return torch.log(x.clamp(min=torch.finfo(x.dtype).tiny))
