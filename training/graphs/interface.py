"""What an encoder-decoder's encoder hands to its decoder, and what both graphs store.

N sources, M memory positions, A attention, R readout.
"""

from training.graphs.stack import Stack, table_is_smaller
from training.networks.encoder_decoder import FEED, EncoderDecoder


def state_sizes(model: EncoderDecoder) -> dict[str, int]:
    """The decoder's states by name, with their sizes after the batch axis."""
    hidden, readout = model.config.hidden_size, model.decoder.readout_size
    return {name: readout if name == FEED else hidden for name in model.decoder.state_names}


def memory_shapes(model: EncoderDecoder) -> dict[str, list[int | str]]:
    """The memory's tensors by name, with their shapes after the axis of sources."""
    attention = model.decoder.attention
    if attention is None:
        return {}
    size = 2 * model.config.encoder_hidden_size
    size = size if attention.kind == "dot" else model.config.hidden_size
    # Keys have the layout of their product: a position is a column for Luong's scores.
    keys: list[int | str] = ["M", size] if attention.kind == "additive" else [size, "M"]
    return {"keys": keys, "values": ["M", model.decoder.readout_size], "inside": ["M"]}


def source_stack(model: EncoderDecoder) -> Stack:
    """The encoder's layers, over tokens or over convolutional features."""
    encoder = model.encoder
    return Stack(
        layers=encoder.bidirectional_layers,
        embedding=encoder.embedding,
        reads_tokens=encoder.convolutions is None,
    )


def has_target_table(model: EncoderDecoder) -> bool:
    """Whether the decoder looks its first layer's sums up by token."""
    sums = len(model.decoder.recurrent_layers[0].weight_ih)
    embedding = model.decoder.embedding
    return table_is_smaller(embedding.num_embeddings, embedding.embedding_dim, sums)
