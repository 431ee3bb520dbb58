"""The gradient of one batch, with its rows divided among threads.

A small recurrent step gains little from threads inside its matrix products and much from threads
that each step some of the rows: with one layer of 384 units on two cores, two groups of lanes read
1.9 times as many characters a second as one group on two threads.
"""

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from training.config import OptimizerConfig
from training.loop.cpus import usable_cpus

Model = TypeVar("Model", bound=nn.Module)
# Computes a share's part of the mean loss: a scalar with its graph.
ShareLoss = Callable[[Model, torch.Generator], Tensor]


@dataclass(slots=True)
class _Replica(Generic[Model]):
    """A model that shares its weights with the others, and has its own gradients and generator."""

    model: Model
    generator: torch.Generator


class Replicas(Generic[Model]):
    """Computes shares of a batch. The result depends on their number, not on that of the cores."""

    def __init__(self, model: Model, options: OptimizerConfig, device: torch.device) -> None:
        count = options.replicas
        threads = options.threads or usable_cpus()
        self._replicas = []
        for index in range(count):
            replica = model if index == 0 else _sharing(model)
            generator = torch.Generator(device).manual_seed(options.seed + index)
            self._replicas.append(_Replica(replica, generator))
        torch.set_num_threads(max(1, threads // count))
        # The calling thread computes the first share; the pool's threads have the same setting.
        self._pool = ThreadPoolExecutor(
            max(1, count - 1),
            thread_name_prefix="replica",
            initializer=torch.set_num_threads,
            initargs=(max(1, threads // count),),
        )

    def __len__(self) -> int:
        return len(self._replicas)

    def backward(self, shares: Sequence[ShareLoss[Model]]) -> float:
        """Returns the sum of the shares' losses, and leaves its gradient in the model's parameters.

        There may be fewer shares than replicas.
        """
        work = list(zip(self._replicas, shares, strict=False))
        pending = [self._pool.submit(_backward, replica, share) for replica, share in work[1:]]
        losses = [_backward(*work[0]), *(future.result() for future in pending)]
        # Added in the order of the shares, whichever finished first.
        for replica, _ in work[1:]:
            for total, part in zip(
                self._replicas[0].model.parameters(), replica.model.parameters(), strict=True
            ):
                if total.grad is not None and part.grad is not None:
                    total.grad += part.grad
        return sum(losses)

    def state(self) -> dict[str, Tensor]:
        """The generators, as tensors to save."""
        return {f"{i}.generator": x.generator.get_state() for i, x in enumerate(self._replicas)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state` returned."""
        for index, replica in enumerate(self._replicas):
            replica.generator.set_state(tensors[f"{index}.generator"])

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()


def _sharing(model: Model) -> Model:
    """A copy whose parameters use the same memory and have their own gradients."""
    replica = copy.deepcopy(model)
    for mine, shared in zip(replica.parameters(), model.parameters(), strict=True):
        mine.data = shared.data
    return replica


def _backward(replica: _Replica[Model], share: ShareLoss[Model]) -> float:
    """Returns this share's part of the mean loss, and leaves its gradient in the replica."""
    replica.model.train()
    replica.model.zero_grad(set_to_none=True)
    loss = share(replica.model, replica.generator)
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach())
