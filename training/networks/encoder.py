"""The encoder: a source read whole, from both ends.

B batch, S source positions, M memory positions (S, or fewer behind a pooling front end), E
embedding, F features of the convolutions, H hidden, D width of the memory.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.config import EncoderDecoderNetworkConfig
from training.networks import initial
from training.networks.dropout import Dropout
from training.networks.recurrent import STATE_NAMES, RecurrentLayer


class BidirectionalLayer(nn.Module):
    """Two recurrent layers, one of which reads each source from its end."""

    def __init__(self, cell: str, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.cell = cell
        self.forwards = RecurrentLayer(cell, input_size, hidden_size)
        self.backwards = RecurrentLayer(cell, input_size, hidden_size)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Outputs [S, B, 2H] of `x` [S, B, E]; past a row's length they are meaningless."""
        zeros = x.new_zeros(x.shape[1], self.forwards.weight_hh.shape[1])
        states = (zeros,) * len(STATE_NAMES[self.cell])
        ahead, _ = self.forwards(x, states, None)
        order = _reversal(x.shape[0], lengths)  # [S, B]
        back, _ = self.backwards(_reordered(x, order), states, None)
        return torch.cat((ahead, _reordered(back, order)), dim=2)


class BidirectionalLayers(nn.ModuleList):
    """Bidirectional layers of one cell, each reading the outputs of the one below."""

    def __init__(self, cell: str, input_size: int, hidden_size: int, num_layers: int) -> None:
        sizes = [input_size] + [2 * hidden_size] * (num_layers - 1)
        super().__init__(BidirectionalLayer(cell, size, hidden_size) for size in sizes)

    @property
    def bidirectional_layers(self) -> list[BidirectionalLayer]:
        """The layers, first to last."""
        return [layer for layer in self if isinstance(layer, BidirectionalLayer)]

    def forward(self, x: Tensor, lengths: Tensor, between: Sequence[Dropout]) -> Tensor:
        """The last layer's outputs [S, B, 2H] of `x` [S, B, E].

        `between` holds a dropout for the input of every layer but the first.
        """
        for i, layer in enumerate(self.bidirectional_layers):
            if i:
                x = between[i - 1](x)
            x = layer(x, lengths)
        return x


def _reversal(length: int, lengths: Tensor) -> Tensor:
    """Indices [S, B] that reverse each row's first `lengths` positions; their own inverse."""
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
            # At first the gates carry the input through, as the paper advises.
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
        # ReLU gives nothing below zero, so the zeros past the end never win the pooling.
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
        self.embedding = initial.embedding(vocab_size, config.embedding_dim)
        self.convolutions = Convolutions(config) if config.encoder == "crnn" else None
        size = config.embedding_dim if self.convolutions is None else self.convolutions.size
        hidden = config.encoder_hidden_size
        self.layers = BidirectionalLayers(config.cell, size, hidden, config.encoder_layers)

    @property
    def bidirectional_layers(self) -> list[BidirectionalLayer]:
        """The recurrent layers, first to last."""
        return self.layers.bidirectional_layers

    def forward(
        self, tokens: Tensor, lengths: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Values [B, M, D] and mask [B, M] of sources `tokens` [B, S], and the summary [B, D]."""
        config = self.config

        def dropout(probability: float) -> Dropout:
            return Dropout(probability, generator, training=self.training)

        x = dropout(config.dropout_embedding)(self.embedding(tokens.t()))  # [S, B, E]
        if self.convolutions is not None:
            x, lengths = self.convolutions(x, lengths)
        between = [dropout(config.dropout_between) for _ in range(config.encoder_layers - 1)]
        x = self.layers(x, lengths, between)  # [M, B, D]
        hidden = config.encoder_hidden_size
        last = (lengths - 1).view(1, -1, 1).expand(1, -1, hidden)
        summary = torch.cat((x[..., :hidden].gather(0, last)[0], x[0, :, hidden:]), dim=1)
        mask = torch.arange(len(x), device=x.device) < lengths.unsqueeze(1)  # [B, M]
        return x.transpose(0, 1), mask, summary
