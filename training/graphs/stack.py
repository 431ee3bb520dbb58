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
from training.graphs.bidirectional import add_maximum, add_operator_layer, add_scanned_layer
from training.graphs.builder import Float32Array, GraphBuilder, array
from training.graphs.cells import add_gru_split
from training.graphs.products import Products
from training.graphs.quantization import input_bias
from training.networks.encoder import BidirectionalLayer

# Largest table of a direction's input products that onnxruntime makes when it loads a graph: 16 MB.
_MAX_TABLE = 1 << 22


@dataclass(frozen=True, kw_only=True, slots=True)
class Stack:
    """Bidirectional layers, and the embedding of what they read."""

    layers: Sequence[BidirectionalLayer]
    embedding: nn.Embedding
    reads_tokens: bool = True  # else features that were made of their embeddings

    @property
    def has_table(self) -> bool:
        """Whether the file holds each direction's sums of the first layer by token."""
        sums = 2 * len(self.layers[0].forwards.weight_ih)
        sizes = self.embedding.num_embeddings, self.embedding.embedding_dim
        return self.reads_tokens and table_is_smaller(*sizes, sums)

    @property
    def reads_tables(self) -> bool:
        """Whether a Scan looks them up, even if the file does not hold them."""
        sums = len(self.layers[0].forwards.weight_ih)
        return self.reads_tokens and (
            self.has_table or self.embedding.num_embeddings * sums <= _MAX_TABLE
        )


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
    pooled: bool = False,
) -> tuple[str, list[str]]:
    """Operands of the outputs [M, N, D] and of each direction's last h [N, D / 2].

    `x` is the tokens [S, N] or the features [M, N, F], `lengths` [N] and `inside` [M, N] say which
    positions are a source's own. If `pooled`, the outputs are their maximum over these, [N, D].
    """
    cell = stack.layers[0].cell
    scans = cell == "rnn" or precision == "int8"
    if not scans:
        graph.add("Cast", [lengths], "memory_lengths", to=TensorProto.INT32)
    elif cell == "gru":
        add_gru_split(graph, stack.layers[0].forwards.weight_hh.shape[1])
    last: list[str] = []
    for i, layer in enumerate(stack.layers):
        is_pooled = pooled and i == len(stack.layers) - 1
        if scans:
            tables = []
            if i == 0 and stack.reads_tables:
                tables = _add_tables(graph, products, stack)
                x = _pads_marked(graph, stack, x, inside)
            inputs = [x, x] if tables else _add_input_sums(graph, products, stack, i, x)
            x, last = add_scanned_layer(
                graph,
                products,
                i,
                layer,
                inputs=inputs,
                tables=tables,
                inside=inside,
                pooled=is_pooled,
            )
            continue
        weights = [array(layer.forwards.weight_ih), array(layer.backwards.weight_ih)]
        if i == 0 and stack.reads_tokens:
            x, weights = _read_tokens(graph, products, stack, x, weights)
        x, last = add_operator_layer(graph, i, layer, x, weights)
        if is_pooled:
            x = add_maximum(graph, x, inside)
    return x, last


def _add_tables(graph: GraphBuilder, products: Products, stack: Stack) -> list[str]:
    """The first layer's sums [V + 1, G·H] of each token for each direction, biases included.

    The last row is for pads: zeros. If their two factors are smaller, the file has those.
    onnxruntime multiplies them when it loads the graph, so that no source pays for it.
    """
    layer = stack.layers[0]
    nothing = np.zeros((1, len(layer.forwards.weight_ih)), np.float32)
    tables = []
    for name, each in (("forward0", layer.forwards), ("backward0", layer.backwards)):
        weight, bias = array(each.weight_ih).T, input_bias(layer.cell, each)
        if stack.has_table:
            table = array(stack.embedding.weight).astype(np.float64) @ weight + bias
            table = np.concatenate([table, nothing])
            tables.append(graph.constant(f"{name}_table", table.astype(np.float32)))
            continue
        if not tables:
            _add_embedding(graph, products, stack.embedding)
            graph.constant("pad_sums", nothing)
        stored = products.add_stored(f"{name}_weight", weight)
        graph.constant(f"{name}_bias", bias)
        graph.add("MatMul", ["embedding", stored], f"{name}_products")
        sums = graph.add("Add", [f"{name}_products", f"{name}_bias"], f"{name}_token_sums")
        tables.append(graph.add("Concat", [sums, "pad_sums"], f"{name}_table", axis=0))
    return tables


def _pads_marked(graph: GraphBuilder, stack: Stack, tokens: str, inside: str) -> str:
    """The tokens [S, N], and the number of the tables' last row where they are not `inside`."""
    graph.constant("pad_row", np.array(stack.embedding.num_embeddings, np.int64))
    return graph.add("Where", [inside, tokens, "pad_row"], "own_tokens")


def _add_input_sums(
    graph: GraphBuilder, products: Products, stack: Stack, i: int, x: str
) -> list[str]:
    """The sums [M, N, G·H] of a layer's input for each direction, biases included.

    For the first layer `x` is what the stack reads; for the others it is the operand [M, N, D] of
    the outputs below.
    """
    layer = stack.layers[i]
    if i == 0 and stack.reads_tokens:
        x = embed(graph, products, stack.embedding, x)
    sums = []
    for name, each in ((f"forward{i}", layer.forwards), (f"backward{i}", layer.backwards)):
        weight = array(each.weight_ih).T  # [.., G·H]
        graph.constant(f"{name}_bias", input_bias(layer.cell, each))
        if i:
            product = products.add_positions(f"{name}_input", x, weight)
        else:
            # Neither embeddings nor convolutional features have a bound.
            stored = products.add_stored(f"{name}_weight", weight)
            product = graph.add("MatMul", [x, stored], f"{name}_product")
        sums.append(graph.add("Add", [product, f"{name}_bias"], f"{name}_sums"))
    return sums


def embed(graph: GraphBuilder, products: Products, embedding: nn.Embedding, tokens: str) -> str:
    """Embeddings [S, N, E] of `tokens` [S, N]."""
    _add_embedding(graph, products, embedding)
    return graph.add("Gather", ["embedding", tokens], "embedded")


def _add_embedding(graph: GraphBuilder, products: Products, embedding: nn.Embedding) -> None:
    """The constant `embedding` [V, E]."""
    products.add_stored("embedding_columns", array(embedding.weight).T)  # [E, V]
    graph.add("Transpose", ["embedding_columns"], "embedding", perm=[1, 0])


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
