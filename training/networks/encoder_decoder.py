"""The encoder-decoder model: a source read whole, a target written token by token.

B batch, S source positions, M memory positions (S, or fewer behind a pooling front end), T target
positions, V target vocabulary, E embedding, H hidden, D width of the memory, R of the readout.

The encoder is bidirectional, so that every memory position has seen the whole source. The decoder
reads the target before it and attends to the memory (Bahdanau et al. 2015; Luong et al. 2015).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.config import EncoderDecoderNetworkConfig
from training.networks.language_model import STATE_NAMES, RecurrentLayer, States

FEED = "feed"  # the readout that input feeding hands to the next step, as a state
_MIN_LOGIT = torch.finfo(torch.float32).min


@dataclass(frozen=True, slots=True)
class Memory:
    """A source, read."""

    values: Tensor  # [B, M, D]
    keys: Tensor  # [B, M, A] what queries are compared with
    mask: Tensor  # [B, M] true where the source is
    summary: Tensor  # [B, D] the last forward and the first backward state


class Dropout:
    """Variational dropout (Gal and Ghahramani 2016): one mask for all positions of a sequence.

    It is drawn at the first use and kept for later steps.
    """

    def __init__(self, probability: float, generator: torch.Generator | None) -> None:
        self._probability = probability
        self._generator = generator
        self._mask: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """`x` [T, B, …] with whole features zeroed, the others scaled up to keep the mean."""
        if self._probability == 0.0:
            return x
        if self._mask is None:
            keep = 1.0 - self._probability
            mask = torch.empty_like(x[:1], requires_grad=False)
            self._mask = mask.bernoulli_(keep, generator=self._generator).div_(keep)
        return x * self._mask


class BidirectionalLayer(nn.Module):
    """Two recurrent layers, one of which reads each source from its end."""

    def __init__(self, cell: str, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.cell = cell
        self.forwards = RecurrentLayer(cell, input_size, hidden_size)
        self.backwards = RecurrentLayer(cell, input_size, hidden_size)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Outputs [S, B, 2H] of `x` [S, B, E]; past a row's length they mean nothing."""
        zeros = x.new_zeros(x.shape[1], self.forwards.weight_hh.shape[1])
        states = (zeros,) * len(STATE_NAMES[self.cell])
        ahead, _ = self.forwards(x, states, None)
        order = _reversal(x.shape[0], lengths)  # [S, B]
        back, _ = self.backwards(_reordered(x, order), states, None)
        return torch.cat((ahead, _reordered(back, order)), dim=2)


def _reversal(length: int, lengths: Tensor) -> Tensor:
    """Indices [S, B] that turn each row's first `lengths` positions around; its own inverse."""
    position = torch.arange(length, device=lengths.device).unsqueeze(1)  # [S, 1]
    return torch.where(position < lengths, lengths - 1 - position, position)


def _reordered(x: Tensor, order: Tensor) -> Tensor:
    return x.gather(0, order.unsqueeze(2).expand_as(x))


class Convolutions(nn.Module):
    """Character convolutions, pooled and passed through highways (Lee, Cho and Hofmann 2017).

    Several widths side by side with ReLU, max-pooling over time with a stride, then highway layers
    (Srivastava et al. 2015): a long character source becomes a memory `stride` times shorter.
    """

    def __init__(self, config: EncoderDecoderNetworkConfig) -> None:
        super().__init__()
        self.stride = config.pool_stride
        self.convolutions = nn.ModuleList(
            nn.Conv1d(config.embedding_dim, filters, width)
            for width, filters in zip(config.conv_widths, config.conv_filters, strict=True)
        )
        self.size = sum(config.conv_filters)
        self.highways = nn.ModuleList(
            nn.Linear(self.size, 2 * self.size) for _ in range(config.highway_layers)
        )
        for layer in self.highways:
            # Open gates carry the input through at first, as the paper advises.
            nn.init.constant_(layer.bias[self.size :], -1.0)  # type: ignore[index]

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """`x` [S, B, E] to [M, B, F], and the lengths there: ⌈length / stride⌉."""
        inside = torch.arange(len(x), device=x.device).unsqueeze(1) < lengths  # [S, B]
        channels = (x * inside.unsqueeze(2)).permute(1, 2, 0)  # [B, E, S]
        parts = []
        for convolution in self.convolutions:
            width = int(convolution.kernel_size[0])  # type: ignore[index]
            padded = functional.pad(channels, ((width - 1) // 2, width // 2))
            parts.append(functional.relu(convolution(padded)))
        # Nothing is below zero, so that zeros past the end never win.
        features = torch.cat(parts, dim=1) * inside.t().unsqueeze(1)  # [B, F, S]
        pooled = functional.max_pool1d(
            features, self.stride, self.stride, ceil_mode=True
        )  # [B, F, M]
        y = pooled.permute(2, 0, 1)  # [M, B, F]
        for layer in self.highways:
            candidate, gate = layer(y).chunk(2, dim=2)
            open_share = torch.sigmoid(gate)
            y = open_share * functional.relu(candidate) + (1.0 - open_share) * y
        return y, (lengths + self.stride - 1) // self.stride


class Encoder(nn.Module):
    """Embedding, an optional convolutional front end, bidirectional layers."""

    def __init__(self, config: EncoderDecoderNetworkConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.embedding = _embedding(vocab_size, config.embedding_dim)
        self.convolutions = Convolutions(config) if config.encoder == "crnn" else None
        size = config.embedding_dim if self.convolutions is None else self.convolutions.size
        hidden = config.encoder_hidden_size
        sizes = [size] + [2 * hidden] * (config.encoder_layers - 1)
        self.layers = nn.ModuleList(BidirectionalLayer(config.cell, x, hidden) for x in sizes)

    @property
    def bidirectional_layers(self) -> list[BidirectionalLayer]:
        """The recurrent layers, first to last."""
        return [layer for layer in self.layers if isinstance(layer, BidirectionalLayer)]

    def forward(
        self, tokens: Tensor, lengths: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Values [B, M, D] and mask [B, M] of sources `tokens` [B, S], and the summary [B, D]."""
        config = self.config
        dropped = self._dropout(config.dropout_embedding, generator)
        x = dropped(self.embedding(tokens.t()))  # [S, B, E]
        if self.convolutions is not None:
            x, lengths = self.convolutions(x, lengths)
        for i, layer in enumerate(self.bidirectional_layers):
            if i:
                x = self._dropout(config.dropout_between, generator)(x)
            x = layer(x, lengths)  # [M, B, D]
        hidden = config.encoder_hidden_size
        last = (lengths - 1).view(1, -1, 1).expand(1, -1, hidden)
        summary = torch.cat((x[..., :hidden].gather(0, last)[0], x[0, :, hidden:]), dim=1)
        mask = torch.arange(len(x), device=x.device) < lengths.unsqueeze(1)  # [B, M]
        return x.transpose(0, 1), mask, summary

    def _dropout(self, probability: float, generator: torch.Generator | None) -> Dropout:
        return Dropout(probability if self.training else 0.0, generator)


class Attention(nn.Module):
    """How much each memory position matters to a decoder state.

    `dot` h·v and `general` h·(W v) after Luong et al. 2015; `additive` u·tanh(W_h h + W_v v) after
    Bahdanau et al. 2015, here with the decoder's new state as in the former.
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


class Decoder(nn.Module):
    """Embedding, recurrent layers, attention, readout, output.

    The readout is tanh(W [context; h]), Luong's attentional vector; without attention tanh(W h).
    Its width is the embedding's where output weights and embeddings are tied.
    """

    def __init__(self, config: EncoderDecoderNetworkConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        hidden, memory_size = config.hidden_size, 2 * config.encoder_hidden_size
        self.readout_size = config.embedding_dim if config.tie_embeddings else hidden
        self.embedding = _embedding(vocab_size, config.embedding_dim)
        fed = self.readout_size if config.input_feeding else 0
        sizes = [config.embedding_dim + fed] + [hidden] * config.decoder_layers
        self.layers = nn.ModuleList(
            RecurrentLayer(config.cell, sizes[i], hidden) for i in range(config.decoder_layers)
        )
        self.attention = None
        if config.attention != "none":
            self.attention = Attention(config.attention, hidden, memory_size)
        attended = 0 if self.attention is None else memory_size
        self.readout = nn.Linear(attended + hidden, self.readout_size)
        nn.init.xavier_uniform_(self.readout.weight)
        nn.init.zeros_(self.readout.bias)
        self.output = nn.Linear(self.readout_size, vocab_size)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        if config.tie_embeddings:
            self.output.weight = self.embedding.weight
        names = STATE_NAMES[config.cell]
        self.recurrent_names = [f"{x}{i}" for i in range(config.decoder_layers) for x in names]
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
        return [layer for layer in self.layers if isinstance(layer, RecurrentLayer)]

    def initial_states(self, summary: Tensor) -> States:
        """Every state tensor through a bridge of its own, from the `summary` [B, D] of a source.

        Hidden states pass a tanh: what a cell gives lies within one, and so must its beginning.
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

        Below 1, `teacher_forcing` is the chance of each position to read its true token rather
        than the likeliest one of the step before: scheduled sampling (Bengio et al. 2015).
        """
        config = self.config
        drop_embedding = Dropout(self._probability(config.dropout_embedding), generator)
        drop_between = [
            Dropout(self._probability(config.dropout_between), generator)
            for _ in range(config.decoder_layers - 1)
        ]
        drop_output = Dropout(self._probability(config.dropout_output), generator)
        scheduled = self.training and teacher_forcing < 1.0

        def run(piece: Tensor, before: Sequence[Tensor]) -> tuple[Tensor, States, Tensor | None]:
            x = drop_embedding(self.embedding(piece.t()))  # [T, B, E]
            if config.input_feeding:
                x = torch.cat((x, before[-1].unsqueeze(0)), dim=2)
            x, after = self._recur(x, before, drop_between)  # [T, B, H]
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

    def _recur(
        self, x: Tensor, states: Sequence[Tensor], drop_between: Sequence[Dropout]
    ) -> tuple[Tensor, States]:
        per_layer = len(STATE_NAMES[self.config.cell])
        after: list[Tensor] = []
        for i, layer in enumerate(self.recurrent_layers):
            if i:
                x = drop_between[i - 1](x)
            before = tuple(states[i * per_layer : (i + 1) * per_layer])
            x, new_states = layer(x, before, None)
            after.extend(new_states)
        return x, tuple(after)

    def _read_out(self, outputs: Tensor, memory: Memory) -> tuple[Tensor, Tensor | None]:
        """Readout [B, T, R] of `outputs` [B, T, H], and the attention weights [B, T, M]."""
        if self.attention is None:
            return torch.tanh(self.readout(outputs)), None
        weights = self.attention(outputs, memory)
        context = weights @ memory.values  # [B, T, D]
        return torch.tanh(self.readout(torch.cat((context, outputs), dim=2))), weights

    def _probability(self, probability: float) -> float:
        return probability if self.training else 0.0


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


def _embedding(vocab_size: int, embedding_dim: int) -> nn.Embedding:
    embedding = nn.Embedding(vocab_size, embedding_dim)
    nn.init.normal_(embedding.weight, std=1.0 / math.sqrt(embedding_dim))
    return embedding
