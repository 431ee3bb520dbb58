"""Bidirectional layers, one on the other, over tokens or over features of them.

N sources, S tokens, M positions (S, or fewer of pooled features), V vocabulary, E embedding,
F features, D width of the outputs, G gates of the cell, H hidden.

LSTM and GRU in single precision are ONNX's operators, which give a row the same bits in any batch.
The tanh RNN, whose operator does not, and every cell in eight bits are Scans of small operators.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto
from torch import nn

from service.bundle.manifest import Precision
from training.graphs.bidirectional import add_operator_layer, add_scanned_layer
from training.graphs.builder import Float32Array, GraphBuilder, array
from training.graphs.cells import add_gru_split
from training.graphs.products import Products
from training.graphs.quantization import input_bias
from training.networks.encoder import BidirectionalLayer


@dataclass(frozen=True, kw_only=True, slots=True)
class Stack:
    """Bidirectional layers, and the embedding of what they read."""

    layers: Sequence[BidirectionalLayer]
    embedding: nn.Embedding
    reads_tokens: bool = True  # else features that were made of their embeddings

    @property
    def has_table(self) -> bool:
        """Whether each direction looks its first layer's sums up by token."""
        sums = 2 * len(self.layers[0].forwards.weight_ih)
        sizes = self.embedding.num_embeddings, self.embedding.embedding_dim
        return self.reads_tokens and table_is_smaller(*sizes, sums)


def table_is_smaller(vocab_size: int, embedding_dim: int, sums: int) -> bool:
    """Whether a table of input products [V, G·H] is smaller than its two factors."""
    return vocab_size * sums <= vocab_size * embedding_dim + embedding_dim * sums


def add_stack(
    graph: GraphBuilder,
    products: Products,
    precision: Precision,
    stack: Stack,
    *,
    x: str,
    lengths: str,
    inside: str,
) -> tuple[str, list[str]]:
    """Operands of the outputs [M, N, D] and of each direction's last h [N, D / 2].

    `x` is the tokens [S, N] or the features [M, N, F], `lengths` [N] and `inside` [M, N] say which
    positions are a source's own.
    """
    cell = stack.layers[0].cell
    scans = cell == "rnn" or precision == "int8"
    if not scans:
        graph.add("Cast", [lengths], "memory_lengths", to=TensorProto.INT32)
    elif cell == "gru":
        add_gru_split(graph, stack.layers[0].forwards.weight_hh.shape[1])
    last: list[str] = []
    for i, layer in enumerate(stack.layers):
        if scans:
            sums = _add_input_sums(graph, products, stack, i, x)
            x, last = add_scanned_layer(graph, products, i, layer, inputs=sums, inside=inside)
            continue
        weights = [array(layer.forwards.weight_ih), array(layer.backwards.weight_ih)]
        if i == 0 and stack.reads_tokens:
            x, weights = _read_tokens(graph, products, stack, x, weights)
        x, last = add_operator_layer(graph, i, layer, x, weights)
    return x, last


def embed(graph: GraphBuilder, products: Products, embedding: nn.Embedding, tokens: str) -> str:
    """Embeddings [S, N, E] of `tokens` [S, N]."""
    products.add_stored("embedding_columns", array(embedding.weight).T)  # [E, V]
    graph.add("Transpose", ["embedding_columns"], "embedding", perm=[1, 0])
    return graph.add("Gather", ["embedding", tokens], "embedded")


def _read_tokens(
    graph: GraphBuilder, products: Products, stack: Stack, tokens: str, weights: list[Float32Array]
) -> tuple[str, list[Float32Array]]:
    """The first operator's input [S, N, …], and the weights [G·H, …] that multiply it.

    If that makes the file smaller, one-hot rows pick columns from a table of products. That is
    exact: everything else they add up is zero.
    """
    if not stack.has_table:
        return embed(graph, products, stack.embedding, tokens), weights
    embedding = array(stack.embedding.weight)
    graph.constant("vocab_size", np.array(len(embedding), np.int64))
    graph.constant("zero_and_one", np.array([0.0, 1.0], np.float32))
    x = graph.add("OneHot", [tokens, "vocab_size", "zero_and_one"], "chosen")
    exact = embedding.astype(np.float64).T
    return x, [(weight @ exact).astype(np.float32) for weight in weights]


def _add_input_sums(
    graph: GraphBuilder, products: Products, stack: Stack, i: int, x: str
) -> list[str]:
    """The sums [M, N, G·H] of a layer's input for each direction, biases included.

    For the first layer `x` is what the stack reads; for the others it is the operand [M, N, D] of
    the outputs below.
    """
    layer = stack.layers[i]
    directions = {f"forward{i}": layer.forwards, f"backward{i}": layer.backwards}
    biases = {name: input_bias(layer.cell, each) for name, each in directions.items()}
    weights = {name: array(each.weight_ih).T for name, each in directions.items()}  # [.., G·H]
    if i == 0 and stack.has_table:
        embedding = array(stack.embedding.weight).astype(np.float64)
        for name in directions:
            table = embedding @ weights[name] + biases[name]
            graph.constant(f"{name}_table", table.astype(np.float32))
        return [graph.add("Gather", [f"{name}_table", x], f"{name}_sums") for name in directions]
    if i == 0 and stack.reads_tokens:
        x = embed(graph, products, stack.embedding, x)
    sums = []
    for name in directions:
        graph.constant(f"{name}_bias", biases[name])
        if i:
            product = products.add_positions(f"{name}_input", x, weights[name])
        else:
            # Neither embeddings nor convolutional features have a bound.
            weight = products.add_stored(f"{name}_weight", weights[name])
            product = graph.add("MatMul", [x, weight], f"{name}_product")
        sums.append(graph.add("Add", [product, f"{name}_bias"], f"{name}_sums"))
    return sums
