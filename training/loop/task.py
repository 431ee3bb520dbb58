"""What the trainer needs from a kind of model."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from training.config import OptimizerConfig

Model = TypeVar("Model", bound=nn.Module)


class TrainingError(Exception):
    """Training cannot continue; the message says why, and where the last good checkpoint is."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How good weights are on the validation split."""

    loss: float  # mean nats a predicted token
    rank: tuple[float, ...]  # decides which weights are kept: the smallest wins
    values: Mapping[str, float]  # for the log
    line: str  # for people


@dataclass(frozen=True, slots=True)
class Curve:
    """The value that the learning curve shows."""

    key: str  # of the logged values
    label: str  # with its unit


class Task(Protocol[Model]):
    """Batches, loss and evaluation of one kind of model."""

    unit: str  # what is predicted one by one, as progress names it
    curve: Curve

    @property
    def model(self) -> Model:
        """The model that is trained."""

    @property
    def vocab_size(self) -> int:
        """Tokens in the predicted vocabulary."""

    def identity(self) -> dict[str, Any]:
        """The text and vocabulary that a checkpoint's weights belong to; JSON."""

    def backward(self) -> tuple[float, int]:
        """Run the next batch. Returns the mean loss in nats, and the number of predicted tokens.

        Leaves the gradient in the model's parameters.
        """

    def loss_values(self, loss: float) -> dict[str, float]:
        """A training loss as the values that the log keeps."""

    def describe(self, loss: float) -> str:
        """A training loss for people."""

    def evaluate(self, model: Model) -> Evaluation:
        """Measure weights on the validation split."""

    def show(self, model: Model, step: int) -> Sequence[str]:
        """Lines that show a person what the model does."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What `restore` needs to continue from here: tensors, and JSON.

        Of several processes, each has the tensors of its own shares, and all the same JSON.
        """

    def restore(self, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        """Continue where `state` was taken; `tensors` are those of all processes."""

    def close(self) -> None:
        """Stop the threads that the task has started."""


def open_device(options: OptimizerConfig) -> torch.device:
    """Seed torch and return the device to train on. Raises TrainingError where there is none."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise TrainingError('training.device: "cuda" is not available here; use "cpu"')
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if options.device == "cuda" and local_rank >= torch.cuda.device_count():
        raise TrainingError(
            f"training.device: this machine has {torch.cuda.device_count()} GPUs, one for each "
            "process; start fewer (torchrun --nproc-per-node)"
        )
    torch.manual_seed(options.seed)
    return torch.device(options.device)
