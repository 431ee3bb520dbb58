"""What the trainer needs of the thing that is trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from training.config import OptimizerConfig

Model = TypeVar("Model", bound=nn.Module)


class TrainingError(Exception):
    """Training cannot go on; the message says why and where the last good checkpoint is."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What weights are worth on the validation split."""

    loss: float  # mean nats a predicted token
    rank: tuple[float, ...]  # the least wins: decides which weights are kept
    values: Mapping[str, float]  # for the log
    line: str  # for people


@dataclass(frozen=True, slots=True)
class Curve:
    """What the learning curve shows."""

    key: str  # of the logged values
    label: str  # with its unit


class Task(Protocol[Model]):
    """Batches, loss and evaluation of one kind of model."""

    unit: str  # of progress: what is predicted one by one
    curve: Curve

    @property
    def model(self) -> Model:
        """The model that is trained."""

    @property
    def vocab_size(self) -> int:
        """Tokens that are predicted among."""

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with, and what its weights mean; JSON."""

    def backward(self) -> tuple[float, int]:
        """The next batch: mean loss in nats, and over how many predicted tokens.

        The gradient is left in the model's parameters.
        """

    def loss_values(self, loss: float) -> dict[str, float]:
        """A training loss as the log has it."""

    def describe(self, loss: float) -> str:
        """A training loss for people."""

    def evaluate(self, model: Model) -> Evaluation:
        """Measure weights on the validation split."""

    def show(self, model: Model, step: int) -> Sequence[str]:
        """Lines that let a person see what the model does."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What `restore` needs to go on from here: tensors, and JSON."""

    def restore(self, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        """Continue where `state` was taken."""

    def close(self) -> None:
        """End what it has started."""


def open_device(options: OptimizerConfig) -> torch.device:
    """The device to train on, torch seeded. Raises TrainingError where there is none such."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise TrainingError('training.device: "cuda" is not available here; "cpu" is')
    torch.manual_seed(options.seed)
    return torch.device(options.device)
