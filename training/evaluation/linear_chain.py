"""What a linear-chain CRF says of texts, from log-probabilities of labels and its transitions.

B batch, T places, L labels. In double precision and exactly: every path is summed (Rabiner 1989,
"A tutorial on hidden Markov models", sections III.A and III.B; Lafferty et al. 2001).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.bundle import labeler
from training.networks.linear_chain import LinearChain

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Chain:
    """p(y | x) ∝ exp(first[y_1] + Σ scores_i[y_i] + Σ transitions[y_i, y_i+1] + last[y_T])."""

    transitions: Floats  # [L, L] from, to
    first: Floats  # [L]
    last: Floats  # [L]

    def path_score(self, scores: Floats, path: Ints) -> float:
        """The exponent of a text's labels `path` [T], with its `scores` [T, L]."""
        picked = (
            scores[np.arange(len(path)), path].sum() + self.transitions[path[:-1], path[1:]].sum()
        )
        return float(picked + self.first[path[0]] + self.last[path[-1]])

    def marginals(self, scores: Floats, lengths: Ints) -> tuple[Floats, Floats]:
        """log p(y_i | x) [B, T, L] of each label by itself, and log Z [B].

        `scores` [B, T, L]; past a text's length, which is at least 1, they are meaningless, and so
        are the marginals.
        """
        alphas = np.empty_like(scores)
        alphas[:, 0] = self.first + scores[:, 0]
        for t in range(1, scores.shape[1]):
            following = _log_product(alphas[:, t - 1], self.transitions) + scores[:, t]
            alphas[:, t] = np.where((lengths > t)[:, None], following, alphas[:, t - 1])
        log_z = np.logaddexp.reduce(alphas[:, -1] + self.last, axis=1)  # [B]
        betas = np.empty_like(scores)
        betas[:, -1] = self.last
        for t in reversed(range(scores.shape[1] - 1)):
            following = _log_product(betas[:, t + 1] + scores[:, t + 1], self.transitions.T)
            betas[:, t] = np.where((lengths > t + 1)[:, None], following, self.last)
        return alphas + betas - log_z[:, None, None], log_z

    def likeliest(self, scores: Floats, lengths: Ints) -> list[Ints]:
        """The likeliest labels [T] of each text (Viterbi 1967), of equals the first."""
        steps = scores.shape[1]
        best = self.first + scores[:, 0]  # [B, L]
        before = np.zeros(scores.shape, np.int64)  # the label before, for each label
        for t in range(1, steps):
            sums = best[:, :, None] + self.transitions  # [B, L, L]
            before[:, t] = sums.argmax(axis=1)
            following = sums.max(axis=1) + scores[:, t]
            best = np.where((lengths > t)[:, None], following, best)
        ends = (best + self.last).argmax(axis=1)
        return [
            _walk_back(before[row, : int(length)], int(end))
            for row, (length, end) in enumerate(zip(lengths, ends, strict=True))
        ]


def chain_of(network: LinearChain) -> Chain:
    """The numbers of a trained chain."""
    parts = (network.transitions, network.first, network.last)
    transitions, first, last = (x.detach().double().cpu().numpy() for x in parts)
    return Chain(transitions, first, last)


def served_chain(chain: labeler.LinearChain) -> Chain:
    """The numbers of a bundle's chain."""
    return Chain(*(np.array(x) for x in (chain.transitions, chain.first, chain.last)))


def _log_product(x: Floats, matrix: Floats) -> Floats:
    """log(exp(x) @ exp(matrix)), [B, L], without overflow."""
    most, largest = x.max(axis=1, keepdims=True), matrix.max()
    with np.errstate(divide="ignore"):  # log 0: a label that nothing leads to
        return np.asarray(np.log(np.exp(x - most) @ np.exp(matrix - largest)) + most + largest)


def _walk_back(before: Ints, end: int) -> Ints:
    path = np.empty(len(before), np.int64)
    path[-1] = end
    for t in reversed(range(1, len(before))):
        path[t - 1] = before[t, path[t]]
    return path
