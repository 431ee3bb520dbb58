"""The labeler: labels of a text, or of each of its places.

B batch, S places (bos, the tokens and eos), E embedding, H hidden, D width of the outputs (2H where
both directions are read), L labels, V vocabulary.

A text's places become one by attention (Yang et al. 2016, section 2.2), by the maximum of each
feature, or by the last place. A classifier that reads forward has an answer after each place; its
maximum starts from the zero state, so that the state of an empty text is zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from service.bundle.labeler import FORBIDDEN, Direction, Pooling
from training.config import LabelerNetworkConfig
from training.networks import initial
from training.networks.dropout import Dropout
from training.networks.encoder import BidirectionalLayers
from training.networks.linear_chain import LinearChain
from training.networks.recurrent import RecurrentLayers, States

POOLED = "pooled"  # the maximum so far, as a state of a classifier that reads forward
_MIN_LOGIT = torch.finfo(torch.float32).min


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """What labels are given to."""

    num_labels: int
    direction: Direction = "both"
    pooling: Pooling | None = None  # None: every place has labels of its own
    crf: bool = False
    allowed: Tensor | None = None  # [V, L] bool: labels that a token may have; None: any


class AttentionPooling(nn.Module):
    """Weights softmax(u · tanh(W h + b)) over a text's places (Yang et al. 2016)."""

    def __init__(self, size: int, attention_size: int) -> None:
        super().__init__()
        self.key = initial.linear(size, attention_size)
        self.query = nn.Parameter(torch.empty(attention_size))
        nn.init.normal_(self.query, std=attention_size**-0.5)

    def forward(self, x: Tensor, inside: Tensor) -> Tensor:
        """The weighted sum [B, D] of `x` [B, S, D]; `inside` [B, S] is false past a text's end."""
        scores = torch.tanh(self.key(x)) @ self.query  # [B, S]
        weights = torch.softmax(scores.masked_fill(~inside, _MIN_LOGIT), dim=1)
        return (weights.unsqueeze(1) @ x).squeeze(1)


class Labeler(nn.Module):
    """Embedding, recurrent layers, pooling, output."""

    allowed: Tensor | None

    def __init__(self, config: LabelerNetworkConfig, head: Head, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.head = head
        self.vocab_size = vocab_size
        hidden = config.hidden_size
        self.embedding = initial.embedding(vocab_size, config.embedding_dim)
        sizes = (config.cell, config.embedding_dim, hidden, config.num_layers)
        self.layers: BidirectionalLayers | RecurrentLayers
        if head.direction == "both":
            self.layers = BidirectionalLayers(*sizes)
        else:
            self.layers = RecurrentLayers(*sizes)
        self.output_size = 2 * hidden if head.direction == "both" else hidden
        self.attention = None
        if head.pooling == "attention":
            self.attention = AttentionPooling(self.output_size, hidden)
        self.output = initial.linear(self.output_size, head.num_labels)
        self.chain = LinearChain(head.num_labels) if head.crf else None
        self.register_buffer("allowed", head.allowed)

    @property
    def labels_places(self) -> bool:
        """Whether the logits are of each place: of a tagger, or of one that reads forward."""
        return self.head.pooling is None or self.head.direction == "forward"

    @property
    def state_names(self) -> list[str]:
        """Names of the state tensors of one that reads forward; else there are none."""
        if isinstance(self.layers, BidirectionalLayers):
            return []
        return self.layers.state_names + ([POOLED] if self.head.pooling == "max" else [])

    def initial_states(self, batch_size: int) -> States:
        """Zeros, [B, H] each."""
        size = (batch_size, self.config.hidden_size)
        return tuple(self.output.weight.new_zeros(size) for _ in self.state_names)

    def forward(
        self, tokens: Tensor, lengths: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Logits of texts `tokens` [B, S] of `lengths` [B], padded: [B, L], or [B, S, L].

        Past a text's end they are meaningless.
        """
        if not isinstance(self.layers, BidirectionalLayers):
            return self.read_on(tokens, self.initial_states(len(tokens)), generator)[0]
        between = self._dropouts(generator)
        x = self.layers(self._embedded(tokens, generator), lengths, between)  # [S, B, D]
        inside = torch.arange(len(x), device=x.device) < lengths.unsqueeze(1)  # [B, S]
        drop = self._dropout(self.config.dropout_output, generator)
        if self.attention is not None:
            pooled = self.attention(x.transpose(0, 1), inside)
        elif self.head.pooling == "max":
            pooled = x.masked_fill(~inside.t().unsqueeze(2), _MIN_LOGIT).amax(dim=0)
        elif self.head.pooling == "last":
            # What each direction has read last.
            half = self.config.hidden_size
            last = (lengths - 1).view(1, -1, 1).expand(1, -1, half)
            pooled = torch.cat((x[..., :half].gather(0, last)[0], x[0, :, half:]), dim=1)
        else:
            return self._of_places(drop(x), tokens)
        logits: Tensor = self.output(drop(pooled.unsqueeze(0)).squeeze(0))
        return logits

    def read_on(
        self, tokens: Tensor, states: Sequence[Tensor], generator: torch.Generator | None = None
    ) -> tuple[Tensor, States]:
        """Logits [B, S, L] after each of `tokens` [B, S], from `states`, and the states after.

        Only where texts are read forward.
        """
        layers = self.layers
        if isinstance(layers, BidirectionalLayers):
            raise TypeError("this labeler reads whole texts")
        count = len(layers.state_names)
        embedded = self._embedded(tokens, generator)
        x, after = layers(embedded, states[:count], self._dropouts(generator))  # [S, B, H]
        if self.head.pooling == "max":
            x = torch.maximum(torch.cummax(x, dim=0).values, states[count])
            after = (*after, x[-1])
        drop = self._dropout(self.config.dropout_output, generator)
        return self._of_places(drop(x), tokens), after

    def _of_places(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Logits [B, S, L] of `x` [S, B, D]."""
        logits: Tensor = self.output(x.transpose(0, 1))
        if self.allowed is not None:
            logits = logits + torch.where(self.allowed[tokens], 0.0, FORBIDDEN)
        return logits

    def _embedded(self, tokens: Tensor, generator: torch.Generator | None) -> Tensor:
        """Embeddings [S, B, E]."""
        drop = self._dropout(self.config.dropout_embedding, generator)
        return drop(self.embedding(tokens.t()))

    def _dropouts(self, generator: torch.Generator | None) -> list[Dropout]:
        count = self.config.num_layers - 1
        return [self._dropout(self.config.dropout_between, generator) for _ in range(count)]

    def _dropout(self, probability: float, generator: torch.Generator | None) -> Dropout:
        return Dropout(probability, generator, training=self.training)
