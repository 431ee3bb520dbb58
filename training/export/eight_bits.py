"""How far eight-bit graphs may differ from their reference."""

import copy
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from training.errors import ExportError, Unverifiable
from training.export.precision import FAULT, MAX_INT8_DIFFERENCE, STEP, Array

# By how many of single precision's steps the biases of the int8 reference are perturbed, in how
# many copies, and up to how many times their effect a difference counts as rounding.
_INT8_STEPS = 4.0
_INT8_COPIES = 4
_INT8_MARGIN = 16.0

Model = TypeVar("Model", bound=nn.Module)


def check_reference_difference(
    model: Model, reference: Callable[[Model], Array], found: Array, what: str
) -> float:
    """Mean difference in nats per token, or label, of int8 graphs from the `reference`.

    A value halfway between two steps of a state is rounded to either, and some models amplify a
    single step. So if the difference exceeds MAX_INT8_DIFFERENCE, the reference is computed again
    with biases perturbed by a few of single precision's steps. If it changes as much, nobody can
    say whether the graph is right (Unverifiable); otherwise it is wrong (ExportError). `what` opens
    the message.
    """
    exact = reference(model)
    difference = float(np.abs(found - exact).mean())
    # Written so that NaN fails too.
    if difference <= MAX_INT8_DIFFERENCE:
        return difference
    roundings = max(
        float(np.abs(reference(_with_moved_biases(model, seed)) - exact).mean())
        for seed in range(_INT8_COPIES)
    )
    message = (
        f"{what} and their reference differ by {difference:.2e} nats per token; "
        f"at most {MAX_INT8_DIFFERENCE} is allowed, and rounding alone makes {roundings:.2e}"
    )
    if difference <= _INT8_MARGIN * roundings:
        raise Unverifiable(message)
    raise ExportError(f"{message}. {FAULT}")


def _with_moved_biases(model: Model, seed: int) -> Model:
    """A copy whose biases are perturbed as much as rounding may change its sums."""
    generator = torch.Generator().manual_seed(seed)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for bias in moved.parameters():
            if bias.dim() == 1:
                drawn = 2.0 * torch.rand(bias.shape, generator=generator) - 1.0
                bias.add_(_INT8_STEPS * STEP * bias.abs().clamp(min=1.0) * drawn)
    return moved
