"""An n-gram model with explicit states, like a recurrent one.

B batch, T time, V vocabulary, K the longest history (order - 1), N nodes, S slots, W slots of a
row.

The state holds the node of the last token, of the last two, and so on up to K: `ngram_nodes`
[B, K], 0 where the trie has no such history. Node ids are whole numbers in floating point, so
that every state of a bundle is of one type.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from training.networks.language_model import LanguageModel
from training.networks.ngram_trie import NOWHERE, RUN, Trie
from training.networks.recurrent import States

STATE_NAME = "ngram_nodes"
# Slots that are read at once: bounds the memory.
_MOST_PLACES = 1 << 21
# No log-probability is below this, so that a token of probability 0 has a finite one.
MIN_LOGPROB = -126 * math.log(2.0)


class NGram(nn.Module):
    """p(next token | the last K tokens), interpolated over all their suffixes.

    The tables stay in double precision; `precision` is what is computed in, single at first.
    """

    precision: Tensor  # []
    columns: Tensor  # [V]
    check: Tensor  # [S]
    child: Tensor  # [S]
    mass: Tensor  # [S]
    base: Tensor  # [N]
    color: Tensor  # [N]
    gamma: Tensor  # [N]

    def __init__(self, trie: Trie) -> None:
        super().__init__()
        self.trie = trie
        self.order = trie.order
        self.vocab_size = len(trie.columns)
        self.register_buffer("precision", torch.zeros(()))
        for name in ("columns", "check", "child", "mass", "base", "color", "gamma"):
            self.register_buffer(name, torch.from_numpy(getattr(trie, name)))

    @property
    def networks(self) -> Sequence[LanguageModel]:
        """None."""
        return ()

    @property
    def ngram(self) -> "NGram":
        """Itself."""
        return self

    @property
    def weights(self) -> Sequence[float]:
        """Of its only part: 1."""
        return (1.0,)

    @property
    def exponent(self) -> None:
        """None: its probabilities are taken as they are."""

    @property
    def state_names(self) -> list[str]:
        """`ngram_nodes`."""
        return [STATE_NAME]

    @property
    def state_shapes(self) -> list[list[int]]:
        """Of each state, after the batch axis: [K]."""
        return [[self.order - 1]]

    def initial_states(self, batch_size: int) -> States:
        """Before any token: zeros [B, K]."""
        return (self.precision.new_zeros(batch_size, self.order - 1),)

    def random_states(self, batch_size: int, rng: np.random.Generator) -> States:
        """Nodes [B, K] after the first 0 to K tokens of random n-grams of the trie."""
        lengths = torch.from_numpy(rng.integers(0, self.order, batch_size))
        nodes = torch.zeros(batch_size, self.order - 1, dtype=torch.int64)
        longest = torch.full((batch_size,), self.trie.root)
        for i in range(self.order - 1):
            found, slots = self._find(longest[:, None], self.columns)  # [B, V]
            leads = found & (self.child[slots] != NOWHERE)
            drawn = torch.from_numpy(rng.random(leads.shape)) * leads
            further = (i < lengths) & leads.any(dim=1)
            after = self._after(nodes, drawn.argmax(dim=1))
            nodes = torch.where(further[:, None], after, nodes)
            longest = torch.where(further, nodes[:, i], longest)
            lengths = torch.where(further, lengths, 0)
        return (nodes.to(self.precision.dtype),)

    def probabilities(self, tokens: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, States]:
        """p [B, T, V] of the token after each of `tokens` [B, T], and the states after."""
        before = states[0].long()  # [B, K]
        columns = self.columns[tokens]
        histories = torch.full_like(columns, self.trie.root)
        every = []
        # The history of k tokens is the child of that of k - 1 before the last token.
        for i in range(self.order - 1):
            found, slots = self._find(histories, columns)
            own = torch.where(found, self.child[slots], NOWHERE)  # [B, T]
            every.append(own)
            histories = torch.cat([before[:, i : i + 1], own[:, :-1]], dim=1)
        nodes = torch.stack(every, dim=2)  # [B, T, K]
        rows = nodes.flatten(0, 1)
        size = max(1, _MOST_PLACES // (self.order * self.vocab_size))
        starts = range(0, len(rows), size)
        probs = torch.cat([self._distribution(rows[i : i + size]) for i in starts])
        shape = (*tokens.shape, self.vocab_size)
        return probs.reshape(shape), (nodes[:, -1].to(self.precision.dtype),)

    def forward(self, tokens: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, States]:
        """Log-probabilities [B, T, V] of the token after each of `tokens` [B, T], and the states.

        None is below `MIN_LOGPROB`.
        """
        probs, after = self.probabilities(tokens, states)
        return probs.clamp(min=2.0**-126).log(), after

    def _after(self, nodes: Tensor, token: Tensor) -> Tensor:
        """The nodes [B, K] after one token [B] more: each the child of the next shorter history."""
        found, slots = self._find(self._and_root(nodes)[:, :-1], self.columns[token][:, None])
        return torch.where(found, self.child[slots], NOWHERE)

    def _and_root(self, nodes: Tensor) -> Tensor:
        """[B, K + 1] nodes of every suffix, the empty one first."""
        return torch.cat([torch.full_like(nodes[:, :1], self.trie.root), nodes], dim=1)

    def _find(self, nodes: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Whether the nodes have a child in those columns, and the slots where it would be."""
        slots = self.base[nodes] * RUN + columns
        return self.check[slots] == self.color[nodes], slots

    def _distribution(self, nodes: Tensor) -> Tensor:
        """p [B, V] after the histories whose nodes are [B, K]."""
        dtype = self.precision.dtype
        suffixes = self._and_root(nodes)
        found, slots = self._find(suffixes[..., None], self.columns)  # [B, K + 1, V]
        mass = torch.where(found, self.mass[slots], 0.0).to(dtype)
        gamma = self.gamma[suffixes].to(dtype)  # [B, K + 1]
        probs = mass[:, 0]
        for i in range(1, self.order):
            probs = mass[:, i] + gamma[:, i : i + 1] * probs
        return probs
