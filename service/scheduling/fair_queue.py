"""A queue of several clients, from which each gets an equal share of what is served.

Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996): every item has a cost, a client's
items are tagged with the cost that was taken of it before, and the least tag is next. A client that
comes new, or comes back, begins where the others are: nobody saves up.
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
    """What one client has in the queue, first come first served."""

    finish: float  # virtual time at which all that was taken of it has been served
    entries: deque[_Entry[Item]] = field(default_factory=deque)

    @property
    def start(self) -> float:
        """The tag of its first item."""
        return max(self.finish, self.entries[0].came_at)


class FairQueue(Generic[Item]):
    """Items by client. Of one client alone it is first come, first served."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line[Item]] = {}  # those with items, or still ahead of `_now`
        self._now = 0.0
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Item]:
        """Every item, client by client."""
        return (entry.item for line in self._lines.values() for entry in line.entries)

    def push(self, client: str, cost: int, item: Item) -> None:
        """Append an item to a client's; `cost` is at least 1."""
        line = self._lines.setdefault(client, _Line(self._now))
        line.entries.append(_Entry(item, cost, self._now))
        self._size += 1

    def first(self) -> Item:
        """What is next. Raises ValueError when empty."""
        return self._next().entries[0].item

    def pop(self) -> Item:
        """Take what is next. Raises ValueError when empty."""
        line = self._next()
        start = line.start
        entry = line.entries.popleft()
        self._size -= 1
        line.finish = start + entry.cost
        self._now = start
        if not line.entries:
            # Who has nothing here and owes nothing is forgotten: clients come and go.
            self._lines = {
                client: each
                for client, each in self._lines.items()
                if each.entries or each.finish > self._now
            }
        return entry.item

    def remove(self, gone: Callable[[Item], bool]) -> None:
        """Take out the items for which this is true; they cost their client nothing."""
        for line in self._lines.values():
            line.entries = deque(entry for entry in line.entries if not gone(entry.item))
        self._size = sum(len(line.entries) for line in self._lines.values())
        if not self._size:
            self._lines.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._lines.clear()
        self._size = 0

    def _next(self) -> _Line[Item]:
        # The first of equals, in the order in which the clients came.
        return min(
            (line for line in self._lines.values() if line.entries), key=lambda line: line.start
        )
