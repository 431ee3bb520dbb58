"""The gradient of one window, its lanes shared out to threads.

B batch, T time, V vocabulary. A small recurrent step gains little from threads inside its matrix
products, and everything from threads beside each other: two groups of lanes on two cores gave
1.9 times the characters a second of one group on two threads (one layer of 384 units).
"""

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from service.bundle import PAD_ID
from training.language_model import LanguageModel, States


@dataclass(slots=True)
class _Replica:
    """A model that shares the weights and has gradients, states and a generator of its own."""

    model: LanguageModel
    states: States
    generator: torch.Generator


class Replicas:
    """Groups of lanes. The result depends on their number, and not on the number of cores."""

    def __init__(
        self, model: LanguageModel, count: int, batch_size: int, seed: int, threads: int
    ) -> None:
        self._replicas = []
        lanes = batch_size // count
        device = model.output.weight.device
        for index in range(count):
            replica = model if index == 0 else _sharing(model)
            generator = torch.Generator(device).manual_seed(seed + index)
            self._replicas.append(_Replica(replica, model.initial_states(lanes), generator))
        torch.set_num_threads(max(1, threads // count))
        # The calling thread computes the first group; the others' threads are set up as it is.
        self._pool = ThreadPoolExecutor(
            max(1, count - 1),
            thread_name_prefix="replica",
            initializer=torch.set_num_threads,
            initargs=(max(1, threads // count),),
        )

    def backward(self, tokens: Tensor, targets: Tensor, reset: Tensor) -> float:
        """Mean loss in nats over the window, its gradient left in the model's parameters.

        `tokens` and `targets` [B, T]; `reset` [B] rows start from the zero state. A padded target
        is not counted.
        """
        predicted = int((targets != PAD_ID).sum())
        shares = [x.chunk(len(self._replicas)) for x in (tokens, targets, reset)]
        work = [
            (replica, *share, predicted)
            for replica, share in zip(self._replicas, zip(*shares, strict=True), strict=True)
        ]
        pending = [self._pool.submit(_backward, *arguments) for arguments in work[1:]]
        losses = [_backward(*work[0]), *(future.result() for future in pending)]
        # Added in the order of the groups, whichever was done first.
        for replica in self._replicas[1:]:
            for total, part in zip(
                self._replicas[0].model.parameters(), replica.model.parameters(), strict=True
            ):
                if total.grad is not None and part.grad is not None:
                    total.grad += part.grad
        return sum(losses)

    def state(self) -> dict[str, Tensor]:
        """States and generators, as tensors to save."""
        tensors: dict[str, Tensor] = {}
        for index, replica in enumerate(self._replicas):
            tensors[f"{index}.generator"] = replica.generator.get_state()
            tensors |= {f"{index}.states.{i}": x for i, x in enumerate(replica.states)}
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `state` gave."""
        for index, replica in enumerate(self._replicas):
            replica.generator.set_state(tensors[f"{index}.generator"])
            replica.states = tuple(
                tensors[f"{index}.states.{i}"].to(state.device)
                for i, state in enumerate(replica.states)
            )

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()


def _sharing(model: LanguageModel) -> LanguageModel:
    """A copy whose parameters are the same memory, with gradients of their own."""
    replica = copy.deepcopy(model)
    for mine, shared in zip(replica.parameters(), model.parameters(), strict=True):
        mine.data = shared.data
    return replica


def _backward(
    replica: _Replica, tokens: Tensor, targets: Tensor, reset: Tensor, predicted: int
) -> float:
    """This group's share of the mean loss; its gradient is in the replica's parameters."""
    replica.model.train()
    replica.model.zero_grad(set_to_none=True)
    keep = (~reset).unsqueeze(1)  # [B, 1]
    states: Sequence[Tensor] = [state * keep for state in replica.states]
    logits, after = replica.model(tokens, states, replica.generator)  # [B, T, V]
    total = functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=PAD_ID, reduction="sum"
    )
    loss = total / predicted
    loss.backward()  # type: ignore[no-untyped-call]
    replica.states = tuple(state.detach() for state in after)
    return float(loss.detach())
