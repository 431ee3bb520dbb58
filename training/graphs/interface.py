"""What an encoder-decoder's encoder hands to its decoder, and nodes that both graphs use.

N sources, M memory positions, T positions, A attention, R readout.
"""

import numpy as np
from onnx import TensorProto, helper

from training.graphs.builder import Float32Array, GraphBuilder
from training.networks.encoder_decoder import FEED, EncoderDecoder

ZERO = helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0])  # for `add_filled`


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


def affine(graph: GraphBuilder, name: str, x: str, weight: Float32Array, bias: Float32Array) -> str:
    """`x` [.., .., K] times `weight` [K, n], plus `bias` [n]."""
    graph.constant(f"{name}_weight", weight)
    graph.constant(f"{name}_bias", bias)
    graph.add("MatMul", [x, f"{name}_weight"], f"{name}_product")
    return graph.add("Add", [f"{name}_product", f"{name}_bias"], f"{name}_sum")


def add_inside(graph: GraphBuilder, x: str, lengths: str, name: str) -> str:
    """Which positions of `x` [T, N, …] lie inside the `lengths` [N]: booleans [T, N]."""
    graph.constant(f"{name}_zero", np.array(0, np.int64))
    graph.constant(f"{name}_one", np.array(1, np.int64))
    graph.add("Shape", [x], f"{name}_shape", start=0, end=1)
    graph.add("Squeeze", [f"{name}_shape", "axis_0"], f"{name}_time")
    graph.add("Range", [f"{name}_zero", f"{name}_time", f"{name}_one"], f"{name}_positions")
    graph.add("Unsqueeze", [f"{name}_positions", "axis_1"], f"{name}_column")  # [T, 1]
    return graph.add("Less", [f"{name}_column", lengths], f"{name}_inside")


def add_filled(graph: GraphBuilder, x: str, name: str, size: int, value: TensorProto) -> str:
    """A tensor [N, size] of one number, N from `x` [M, N, …]."""
    graph.add("Shape", [x], f"{name}_rows", start=1, end=2)
    graph.constant(f"{name}_size", np.array([size], np.int64))
    graph.add("Concat", [f"{name}_rows", f"{name}_size"], f"{name}_shape", axis=0)
    return graph.add("ConstantOfShape", [f"{name}_shape"], name, value=value)


def table_is_smaller(vocab_size: int, embedding_dim: int, sums: int) -> bool:
    """Whether a table of input products [V, G·H] is smaller than its two factors."""
    return vocab_size * sums <= vocab_size * embedding_dim + embedding_dim * sums


def has_source_table(model: EncoderDecoder) -> bool:
    """Whether each direction of the encoder looks its first layer's sums up by token."""
    encoder = model.encoder
    if encoder.convolutions is not None:
        return False
    sums = 2 * len(encoder.bidirectional_layers[0].forwards.weight_ih)
    embedding = encoder.embedding
    return table_is_smaller(embedding.num_embeddings, embedding.embedding_dim, sums)


def has_target_table(model: EncoderDecoder) -> bool:
    """Whether the decoder looks its first layer's sums up by token."""
    sums = len(model.decoder.recurrent_layers[0].weight_ih)
    embedding = model.decoder.embedding
    return table_is_smaller(embedding.num_embeddings, embedding.embedding_dim, sums)
