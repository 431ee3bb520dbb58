"""Modules with the initial weights that every kind of model gives them."""

import math

from torch import nn


def embedding(vocab_size: int, embedding_dim: int) -> nn.Embedding:
    """Vectors whose length is about one."""
    module = nn.Embedding(vocab_size, embedding_dim)
    nn.init.normal_(module.weight, std=1.0 / math.sqrt(embedding_dim))
    return module


def linear(input_size: int, output_size: int) -> nn.Linear:
    """Initial weights after Glorot and Bengio 2010, and zeros as biases."""
    module = nn.Linear(input_size, output_size)
    nn.init.xavier_uniform_(module.weight)
    nn.init.zeros_(module.bias)
    return module
