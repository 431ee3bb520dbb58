"""The encoder-decoder model: a source read whole, a target written token by token.

B batch, S source positions, M memory positions (S, or fewer behind a pooling front end), T target
positions, V target vocabulary, E embedding, H hidden, D width of the memory, R of the readout.

The encoder is bidirectional, so that every memory position has seen the whole source. The decoder
reads the target so far and attends to the memory (Bahdanau et al. 2015; Luong et al. 2015).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.config import EncoderDecoderNetworkConfig
from training.networks import initial
from training.networks.attention import Attention, Memory
from training.networks.dropout import Dropout
from training.networks.encoder import Encoder
from training.networks.recurrent import RecurrentLayer, RecurrentLayers, States

FEED = "feed"  # the readout that input feeding hands to the next step, as a state


class Decoder(nn.Module):
    """Embedding, recurrent layers, attention, readout, output.

    The readout is tanh(W [context; h]), Luong's attentional vector; without attention tanh(W h).
    Its width is the embedding's if output weights and embeddings are tied.
    """

    def __init__(self, config: EncoderDecoderNetworkConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        hidden, memory_size = config.hidden_size, 2 * config.encoder_hidden_size
        self.readout_size = config.embedding_dim if config.tie_embeddings else hidden
        self.embedding = initial.embedding(vocab_size, config.embedding_dim)
        fed = self.readout_size if config.input_feeding else 0
        self.layers = RecurrentLayers(
            config.cell, config.embedding_dim + fed, hidden, config.decoder_layers
        )
        self.attention = None
        if config.attention != "none":
            self.attention = Attention(config.attention, hidden, memory_size)
        attended = 0 if self.attention is None else memory_size
        self.readout = initial.linear(attended + hidden, self.readout_size)
        self.output = initial.linear(self.readout_size, vocab_size)
        if config.tie_embeddings:
            self.output.weight = self.embedding.weight
        self.recurrent_names = self.layers.state_names
        self.bridges = nn.ModuleDict(
            {name: nn.Linear(memory_size, hidden) for name in self.recurrent_names}
        )

    @property
    def state_names(self) -> list[str]:
        """Names of the state tensors in order: `h0`, `c0`, `h1` and so on, then `feed`."""
        return self.recurrent_names + ([FEED] if self.config.input_feeding else [])

    @property
    def recurrent_layers(self) -> list[RecurrentLayer]:
        """The recurrent layers, first to last."""
        return self.layers.recurrent_layers

    def initial_states(self, summary: Tensor) -> States:
        """A source's `summary` [B, D] through a bridge of its own for every state tensor.

        Hidden states pass through a tanh: a cell's outputs lie in [-1, 1], and so must the first.
        """
        states = []
        for name, bridge in self.bridges.items():
            state = bridge(summary)
            states.append(torch.tanh(state) if name.startswith("h") else state)
        if self.config.input_feeding:
            states.append(summary.new_zeros(len(summary), self.readout_size))
        return tuple(states)

    def forward(
        self,
        tokens: Tensor,
        states: Sequence[Tensor],
        memory: Memory,
        generator: torch.Generator | None = None,
        teacher_forcing: float = 1.0,
    ) -> tuple[Tensor, States, Tensor | None]:
        """Logits [B, T, V] after each of `tokens` [B, T], the states after, weights [B, T, M].

        `teacher_forcing` is the probability that a position reads its true token instead of the
        likeliest one of the previous step: scheduled sampling (Bengio et al. 2015).
        """
        config = self.config

        def dropout(probability: float) -> Dropout:
            return Dropout(probability, generator, training=self.training)

        drop_embedding = dropout(config.dropout_embedding)
        drop_between = [dropout(config.dropout_between) for _ in range(config.decoder_layers - 1)]
        drop_output = dropout(config.dropout_output)
        scheduled = self.training and teacher_forcing < 1.0

        def run(piece: Tensor, before: Sequence[Tensor]) -> tuple[Tensor, States, Tensor | None]:
            x = drop_embedding(self.embedding(piece.t()))  # [T, B, E]
            if config.input_feeding:
                x = torch.cat((x, before[-1].unsqueeze(0)), dim=2)
            x, after = self.layers(x, before, drop_between)  # [T, B, H]
            readout, weights = self._read_out(x.transpose(0, 1), memory)  # [B, T, R]
            if config.input_feeding:
                after = (*after, readout[:, -1])
            return self.output(drop_output(readout.transpose(0, 1)).transpose(0, 1)), after, weights

        if not (config.input_feeding or scheduled):
            return run(tokens, states)
        parts: list[Tensor] = []
        all_weights: list[Tensor | None] = []
        after: States = tuple(states)
        for t in range(tokens.shape[1]):
            token = tokens[:, t : t + 1]
            if scheduled and t:
                forced = torch.empty_like(token, dtype=torch.float32)
                forced.bernoulli_(teacher_forcing, generator=generator)
                token = torch.where(forced.bool(), token, parts[-1].argmax(dim=2))
            logits, after, weights = run(token, after)
            parts.append(logits)
            all_weights.append(weights)
        attended = [x for x in all_weights if x is not None]
        return torch.cat(parts, dim=1), after, torch.cat(attended, dim=1) if attended else None

    def _read_out(self, outputs: Tensor, memory: Memory) -> tuple[Tensor, Tensor | None]:
        """Readout [B, T, R] of `outputs` [B, T, H], and the attention weights [B, T, M]."""
        if self.attention is None:
            return torch.tanh(self.readout(outputs)), None
        weights = self.attention(outputs, memory)
        context = weights @ memory.values  # [B, T, D]
        return torch.tanh(self.readout(torch.cat((context, outputs), dim=2))), weights


class EncoderDecoder(nn.Module):
    """p(target | source), token by token."""

    def __init__(
        self, config: EncoderDecoderNetworkConfig, source_vocab_size: int, target_vocab_size: int
    ) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, source_vocab_size)
        self.decoder = Decoder(config, target_vocab_size)

    def encode(
        self, sources: Tensor, lengths: Tensor, generator: torch.Generator | None = None
    ) -> Memory:
        """Read `sources` [B, S] of `lengths` [B]."""
        values, mask, summary = self.encoder(sources, lengths, generator)
        attention = self.decoder.attention
        return Memory(
            values, values if attention is None else attention.keys(values), mask, summary
        )

    def forward(
        self,
        sources: Tensor,
        lengths: Tensor,
        tokens: Tensor,
        generator: torch.Generator | None = None,
        teacher_forcing: float = 1.0,
    ) -> Tensor:
        """Logits [B, T, V] of the token after each of `tokens` [B, T]."""
        memory = self.encode(sources, lengths, generator)
        states = self.decoder.initial_states(memory.summary)
        logits: Tensor
        logits, _, _ = self.decoder(tokens, states, memory, generator, teacher_forcing)
        return logits
