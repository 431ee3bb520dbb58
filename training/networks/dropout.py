"""Dropout with masks from a given random generator."""

import torch
from torch import Tensor


def dropout_mask(like: Tensor, probability: float, generator: torch.Generator | None) -> Tensor:
    """Zeros with the probability, elsewhere the factor that keeps the mean.

    `generator` draws it; None takes torch's own.
    """
    keep = 1.0 - probability
    mask = torch.empty_like(like, requires_grad=False)
    return mask.bernoulli_(keep, generator=generator).div_(keep)


class Dropout:
    """Variational dropout (Gal and Ghahramani 2016): one mask for all positions of a sequence.

    The mask is drawn at the first use and kept for later steps. Outside of training nothing is
    drawn and nothing is dropped.
    """

    def __init__(
        self, probability: float, generator: torch.Generator | None, *, training: bool = True
    ) -> None:
        self._probability = probability if training else 0.0
        self._generator = generator
        self._mask: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """`x` [T, B, …] with whole features zeroed, the others scaled up to keep the mean."""
        if self._probability == 0.0:
            return x
        if self._mask is None:
            self._mask = dropout_mask(x[:1], self._probability, self._generator)
        return x * self._mask
