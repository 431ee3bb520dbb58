"""Training on two threads and on two processes: tokens a second, and the share of communication.

    torchrun --standalone --nproc-per-node 2 -m bench.distributed

Rounds alternate: rank 0 trains alone on two threads while the other waits, and then each trains
one share. Sums of gradients are timed by themselves too: in parts, as training adds them; passed
along the ranks; and all on rank 0. They are the same to the bit.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import torch
from torch import Tensor, distributed

from bench.report import Row, say, table, write
from training.__main__ import keep_freed_memory
from training.config import LanguageModelConfig
from training.data import corpus as corpora
from training.loop import processes
from training.loop.language_model import LanguageModelTask
from training.loop.trainer import Trainer, parameter_count
from training.networks.language_model import LanguageModel

Run: TypeAlias = Trainer[LanguageModel]

_TEXT = Path(__file__).parents[1] / "training/data/alice/alice.txt"
_SIZES: Mapping[str, tuple[int, int]] = {
    "1 x 128": (1, 128),
    "1 x 336": (1, 336),
    "2 x 512": (2, 512),
}
_ROUNDS = 3
_STEPS = 4
_SUMS = 9


def _trainer(layers: int, units: int, folder: Path) -> Run:
    """Sixteen lanes of 64 characters, as `alice-lstm` is trained."""
    document: dict[str, Any] = {
        "name": "bench",
        "data": {"files": [str(_TEXT)]},
        "model": {"num_layers": layers, "hidden_size": units, "embedding_dim": 32},
        "training": {"batch_size": 16, "bptt_len": 64, "replicas": 2},
    }
    config = LanguageModelConfig.model_validate(document)
    corpus = corpora.prepare(config.data, folder, folder / f"corpus-{layers}-{units}")
    return Trainer(config, LanguageModelTask(config, corpus), folder)


def _seconds_a_step(run: Run) -> float:
    started = time.perf_counter()
    for _ in range(_STEPS):
        run.train_step()
    return (time.perf_counter() - started) / _STEPS


# --- sums -----------------------------------------------------------------------------------------


def _in_parts(own: Tensor) -> Tensor:
    return processes.ordered_sum(own, 2)


def _passed_along(own: Tensor) -> Tensor:
    """The sum so far goes from rank 0 to rank 1, which gives it to all."""
    total = own[0].clone()
    if processes.rank() == 0:
        distributed.send(total, 1)
    else:
        before = torch.empty_like(total)
        distributed.recv(before, 0)
        total = before + total
    distributed.broadcast(total, 1)
    return total


def _on_rank_0(own: Tensor) -> Tensor:
    total = own[0].clone()
    if processes.rank() == 0:
        other = torch.empty_like(total)
        distributed.recv(other, 1)
        total += other
    else:
        distributed.send(total, 0)
    distributed.broadcast(total, 0)
    return total


_SUM_NAMES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "in parts": _in_parts,
    "passed along": _passed_along,
    "on rank 0": _on_rank_0,
}


def _sum_rows(name: str, parameters: int) -> list[Row]:
    generator = torch.Generator().manual_seed(processes.rank())
    own = torch.randn(1, parameters, generator=generator)
    seconds: dict[str, list[float]] = {kind: [] for kind in _SUM_NAMES}
    for _ in range(_SUMS):
        sums = []
        for kind, add in _SUM_NAMES.items():
            distributed.barrier()
            started = time.perf_counter()
            sums.append(add(own))
            distributed.barrier()
            seconds[kind].append(time.perf_counter() - started)
        if not all(torch.equal(x, sums[0]) for x in sums):
            raise ValueError("the sums differ")
    return [
        Row(f"{name}: gradients added {kind}", 1000 * min(found), "ms")
        for kind, found in seconds.items()
    ]


# --- rounds ---------------------------------------------------------------------------------------


def _measured(name: str, alone: Run, shared: Run) -> list[Row]:
    tokens = 16 * 64
    threads, ranks = [], []
    for _ in range(_ROUNDS):
        distributed.barrier()
        if processes.rank() == 0:
            threads.append(_seconds_a_step(alone))
        distributed.barrier()
        ranks.append(_seconds_a_step(shared))
    parameters = parameter_count(shared.model)
    sums = _sum_rows(name, parameters)
    if processes.rank():
        return []
    one, two = statistics.median(threads), statistics.median(ranks)
    return [
        Row(f"{name}: parameters", parameters, ""),
        Row(f"{name}: two threads", tokens / one, "tokens/s"),
        Row(f"{name}: two processes", tokens / two, "tokens/s", "two threads", one / two),
        *sums,
        Row(f"{name}: share of a step that the sum takes", sums[0].value / (10 * two), "%"),
    ]


def main() -> None:
    """Train, time and print; rank 0 writes the file."""
    keep_freed_memory()  # as `train` does
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        alone = {name: _trainer(*size, folder) for name, size in _SIZES.items()}
        with processes.joined():
            rows = []
            for name, size in _SIZES.items():
                rows += _measured(name, alone[name], _trainer(*size, folder))
    if rows:
        say(table(rows))
        write("distributed.json", "Training on two threads and on two processes", rows)


if __name__ == "__main__":
    main()
