"""A fair queue: every client with queued work gets an equal share of the service.

Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996): every item has a cost. An item's tag
is the cost served to its client so far, and the item with the smallest tag is next. A client that
is new or returns starts at the current virtual time, so nobody saves up credit while idle.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(slots=True)
class _Entry(Generic[Item]):
    item: Item
    cost: int
    came_at: float  # virtual time


@dataclass(slots=True)
class _Line(Generic[Item]):
    """The queued items of one client, first come first served."""

    finish: float  # virtual time at which the items popped so far have been served
    entries: deque[_Entry[Item]] = field(default_factory=deque)

    @property
    def start(self) -> float:
        """The start tag of its first item."""
        return max(self.finish, self.entries[0].came_at)


class FairQueue(Generic[Item]):
    """Items by client. With a single client it is first come, first served."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line[Item]] = {}  # with items, or with a finish after `_now`
        self._now = 0.0
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Item]:
        """Every item, client by client."""
        return (entry.item for line in self._lines.values() for entry in line.entries)

    def push(self, client: str, cost: int, item: Item) -> None:
        """Append an item to a client's line; `cost` is at least 1."""
        line = self._lines.setdefault(client, _Line(self._now))
        line.entries.append(_Entry(item, cost, self._now))
        self._size += 1

    def first(self) -> Item:
        """Return the next item without removing it. Raises ValueError when empty."""
        return self._next().entries[0].item

    def pop(self) -> Item:
        """Remove and return the next item. Raises ValueError when empty."""
        line = self._next()
        start = line.start
        entry = line.entries.popleft()
        self._size -= 1
        line.finish = start + entry.cost
        self._now = start
        if not line.entries:
            # Clients come and go: forget those without items that are not ahead of their share.
            self._lines = {
                client: each
                for client, each in self._lines.items()
                if each.entries or each.finish > self._now
            }
        return entry.item

    def remove(self, gone: Callable[[Item], bool]) -> None:
        """Remove the items for which `gone` is true, at no cost to their client."""
        for line in self._lines.values():
            line.entries = deque(entry for entry in line.entries if not gone(entry.item))
        self._size = sum(len(line.entries) for line in self._lines.values())
        if not self._size:
            self._lines.clear()

    def clear(self) -> None:
        """Remove all items and forget all clients."""
        self._lines.clear()
        self._size = 0

    def _next(self) -> _Line[Item]:
        # On a tie, the client that came first.
        return min(
            (line for line in self._lines.values() if line.entries), key=lambda line: line.start
        )
