"""Several processes that train one model, on one machine or several, started by `torchrun`.

Rank 0 leads. It alone reads the configuration and its files, evaluates, logs and writes the run's
folder; before each step and each checkpoint it announces which comes next. The others follow. Each
process computes its shares of a batch, and all add the shares' gradients in the same order as a
single process does. A process that ends closes its connections, so those that wait for it end too.
"""

import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, distributed
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from training.loop.interfaces import interface_towards
from training.loop.task import TrainingError

_MEETING_S = 600.0  # until all processes have started: loading torch from a cold disk is slow
_POLL_S = 0.02
_WAITING = timedelta(days=60)  # for rank 0, which may evaluate for hours
_BLOCK_BYTES = 1 << 26  # of a file that is sent
_INTERFACE = "GLOO_SOCKET_IFNAME"


class LostContact(TrainingError):
    """Another process has ended, or cannot be reached."""


class Order(IntEnum):
    """What all processes do next, together."""

    STEP = 1
    SAVE = 2
    END = 3


def launched() -> bool:
    """Whether this process was started as one of several, or by `torchrun`."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys()


def count() -> int:
    """The number of processes that train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """The rank of this process; 0 if it is alone."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def on_this_machine() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if distributed.is_initialized() else 1


# --- meeting --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Job:
    """What one call of `torchrun` remembers when it restarts processes."""

    store: Store

    def begin(self) -> None:
        """Record that this job has begun the run in the folder."""
        self.store.set("begun", "1")

    def has_begun(self) -> bool:
        """Whether earlier processes of this job have begun the run.

        The number of restarts cannot tell: torchrun counts it for each machine, and also restarts
        after an error of the user.
        """
        return bool(self.store.check(["begun"]))


@contextmanager
def joined() -> Iterator[Job]:
    """Connect to the other processes. Raises LostContact if they cannot be reached."""
    host = os.environ["MASTER_ADDR"]
    interface = interface_towards(host) if _INTERFACE not in os.environ else None
    if interface is not None:
        # By itself gloo takes the address of the host's name, which is often a loopback address.
        os.environ[_INTERFACE] = interface
    try:
        store, me, size = next(rendezvous("env://", timeout=timedelta(seconds=_MEETING_S)))
        meeting = PrefixStore(_meet(store, me, size), store)
        cuda = torch.cuda.is_available() and distributed.is_nccl_available()
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=meeting,
            rank=me,
            world_size=size,
            timeout=_WAITING,
        )
    except RuntimeError as error:
        raise LostContact(f"cannot connect to the other processes through {host}") from error
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        yield Job(store)
    finally:
        distributed.destroy_process_group()


def _meet(store: Store, me: int, size: int) -> str:
    """A name that these processes share, and that no process before a restart had.

    The store keeps what earlier processes left in it, and their addresses must not be taken for
    those of the processes that replace them.
    """
    own = uuid.uuid4().hex
    if me:
        store.set(f"hello/{me}", own)
        name: str = store.get(f"welcome/{own}").decode()
        store.set(f"arrived/{name}/{me}", "1")
        return name
    missing = set(range(1, size))
    give_up = time.monotonic() + _MEETING_S
    while missing:
        if time.monotonic() > give_up:
            raise LostContact(f"ranks {sorted(missing)} have not started in {_MEETING_S:.0f} s")
        for other in sorted(missing):
            if store.check([f"hello/{other}"]):
                store.set(f"welcome/{store.get(f'hello/{other}').decode()}", own)
            if store.check([f"arrived/{own}/{other}"]):
                missing.remove(other)
        time.sleep(_POLL_S)
    return own


@contextmanager
def _contact() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise LostContact(
            "another process has ended or cannot be reached; its own message says why. "
            "`--resume` continues from the last checkpoint"
        ) from error


# --- messages -------------------------------------------------------------------------------------


def exchange(order: Order | None, signal_number: int | None) -> tuple[Order, int | None]:
    """Rank 0's order, and a signal that any of the processes has received.

    Only rank 0 passes an `order`.
    """
    mine = (order or 0, signal_number or 0)
    if count() == 1:
        found = [mine]
    else:
        own = torch.tensor(mine)
        parts = [torch.empty_like(own) for _ in range(count())]
        with _contact():
            distributed.all_gather(parts, own)
        found = [(int(first), int(second)) for first, second in parts]
    return Order(found[0][0]), max(second for _, second in found) or None


def gathered(values: Sequence[float]) -> list[float]:
    """The values of all processes, in the order of their ranks; each process has equally many."""
    if count() == 1:
        return list(values)
    own = torch.tensor(values, dtype=torch.float64)
    parts = [torch.empty_like(own) for _ in range(count())]
    with _contact():
        distributed.all_gather(parts, own)
    return [value for part in parts for value in part.tolist()]


def told(document: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Rank 0's document, sent as JSON; only rank 0 passes one."""
    data = json.dumps(document).encode()
    size = torch.tensor(len(data))
    with _contact():
        distributed.broadcast(size, 0)
        buffer = torch.empty(int(size), dtype=torch.uint8)
        if document is not None:
            buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        distributed.broadcast(buffer, 0)
    found: dict[str, Any] = json.loads(buffer.numpy().tobytes())
    return found


def agree(tensors: Sequence[Tensor]) -> None:
    """Copy rank 0's values into the `tensors` of all processes.

    On processors of one kind they are equal already; different kinds round differently.
    """
    if count() == 1:
        return
    with _contact(), torch.no_grad():
        for tensor in tensors:
            distributed.broadcast(tensor, 0)


def collected(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On rank 0: the tensors of all processes, whose names differ. On the others: their own."""
    found = dict(tensors)
    for other in range(1, count()):
        size = torch.tensor(0)
        with _contact():
            if rank() == 0:
                distributed.recv(size, other)
                buffer = torch.empty(int(size), dtype=torch.uint8)
                distributed.recv(buffer, other)
                found |= load(buffer.numpy().tobytes())
            elif rank() == other:
                data = save({name: x.detach().cpu().contiguous() for name, x in tensors.items()})
                distributed.send(torch.tensor(len(data)), 0)
                distributed.send(torch.frombuffer(bytearray(data), dtype=torch.uint8), 0)
    return found


def ordered_sum(own: Tensor, shares: int) -> Tensor:
    """The sum [P] of the first `shares` rows of all processes' `own` [K, P], added one by one.

    They are added in the order of the ranks, and within a rank in the order of its rows, since
    floating-point sums depend on the order. Each process adds a part of the columns and sends it
    to the others, so that no process sends more as their number grows.
    """
    rows, size = own.shape
    width = -(-size // count())
    padded = own
    if width * count() > size:
        padded = torch.nn.functional.pad(own, (0, width * count() - size))
    sent = padded.view(rows, count(), width).transpose(0, 1).contiguous()  # [processes, K, width]
    received = torch.empty_like(sent)
    total = own.new_empty(count(), width)
    with _contact():
        distributed.all_to_all_single(received, sent)
        first, *others = received.view(-1, width)[:shares]
        for other in others:
            first += other
        distributed.all_gather([*total.unbind()], first)
    return total.flatten()[:size]


# --- files ----------------------------------------------------------------------------------------


def offer(folder: Path, names: Sequence[str], document: Mapping[str, Any]) -> None:
    """On rank 0: send the others a document, and `names` in `folder` to those that lack them.

    Each name is a file, or a folder with all its files.
    """
    if count() == 1:
        return
    paths = sorted(x for name in names for x in _files(folder / name))
    sizes = [path.stat().st_size for path in paths]
    files = [*zip((x.relative_to(folder).as_posix() for x in paths), sizes, strict=True)]
    mark = folder / f".seen-by-{uuid.uuid4().hex}"
    mark.touch()
    try:
        told({"document": document, "mark": str(mark.resolve()), "files": files})
        seen = gathered([1.0])
    finally:
        mark.unlink()
    if not all(seen):
        for path, size in zip(paths, sizes, strict=True):
            with path.open("rb") as stream:
                for length in _blocks(size):
                    block = torch.frombuffer(bytearray(stream.read(length)), dtype=torch.uint8)
                    with _contact():
                        distributed.broadcast(block, 0)


def received(scratch: Path) -> tuple[Path, dict[str, Any]]:
    """On other ranks: the folder that rank 0 offers, or its copy in `scratch`; the document."""
    message = told()
    mark = Path(message["mark"])
    visible = mark.exists()
    if all(gathered([float(visible)])):
        return mark.parent, message["document"]
    for name, size in message["files"]:
        path = Path(os.devnull) if visible else scratch / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as stream:
            for length in _blocks(size):
                block = torch.empty(length, dtype=torch.uint8)
                with _contact():
                    distributed.broadcast(block, 0)
                stream.write(block.numpy().data)
    return (mark.parent if visible else scratch), message["document"]


def _files(path: Path) -> list[Path]:
    return [x for x in path.rglob("*") if x.is_file()] if path.is_dir() else [path]


def _blocks(size: int) -> Iterator[int]:
    for begin in range(0, size, _BLOCK_BYTES):
        yield min(_BLOCK_BYTES, size - begin)
