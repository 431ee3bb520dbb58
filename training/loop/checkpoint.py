"""Checkpoints without pickle: tensors in safetensors, everything else as JSON in its header."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

LAST = "last.safetensors"  # everything that is needed to resume
BEST = "best.safetensors"  # the weights of the best evaluation


class CheckpointError(Exception):
    """A checkpoint cannot be used; the message is one line."""


def save(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write a checkpoint, whole or not at all. Raises CheckpointError, as on a full disk."""
    scratch = path.with_suffix(".writing")
    # Cloned: tied weights share memory, which safetensors refuses.
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        save_file(copies, scratch, metadata={"record": json.dumps(record)})
    except SafetensorError as error:  # of every failure, those of the operating system too
        scratch.unlink(missing_ok=True)
        raise CheckpointError(f"{path}: cannot be written: {error}") from error
    with scratch.open("rb") as stream:
        os.fsync(stream.fileno())
    scratch.replace(path)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the record of a checkpoint. Raises CheckpointError for any other file."""
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, _record(path, file)


def read_record(path: Path) -> dict[str, Any]:
    """The record alone. Raises CheckpointError for any other file."""
    with _opened(path) as file:
        return _record(path, file)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: there is no checkpoint") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a checkpoint: {error}") from error


def _record(path: Path, file: Any) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads((file.metadata() or {})["record"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path}: a safetensors file, but not a checkpoint of this project"
        ) from error
    return record


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with `prefix.` before every name."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def unprefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose name starts with `prefix.`, without it."""
    start = f"{prefix}."
    return {name.removeprefix(start): x for name, x in tensors.items() if name.startswith(start)}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as flat tensors: `<parameter index>.<name>`."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": value for i, entry in state.items() for name, value in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore the state that `optimizer_tensors` returned."""
    document = optimizer.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    document["state"] = state
    optimizer.load_state_dict(document)
