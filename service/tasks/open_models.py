"""Which models are open: each is opened at its first use, within a budget of bytes.

To make room, the least recently used models are closed; a model that a request uses stays open.
Each model is opened once for all requests that wait for it. As soon as another model would not fit,
several are closed, so that the next one does not have to wait.
"""

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Model = TypeVar("Model")

# The part of the budget that is freed together: returning memory costs much, and is done once.
_CLEARED = 1 / 8
_POLL_S = 0.02


class NoRoom(Exception):
    """The models in use leave no room, and none of them has become free in time."""


class Shelf:
    """The names of open models, in the order of use, and the bytes that they take."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.used_bytes = 0  # of models that are open, being opened or being closed
        self.leaving_bytes = 0  # of those that are being closed and not in use
        self._sizes: OrderedDict[str, int] = OrderedDict()  # least recently used first

    def __contains__(self, name: str) -> bool:
        """Whether it is open."""
        return name in self._sizes

    def touch(self, name: str) -> None:
        """Note that it is used."""
        self._sizes.move_to_end(name)

    def take(self, count: int) -> None:
        """Reserve bytes for a model that is being opened."""
        self.used_bytes += count

    def put(self, name: str, count: int) -> None:
        """Note that a model is open now, in bytes that were reserved for it."""
        self._sizes[name] = count

    def remove(self, name: str, *, is_idle: bool) -> int:
        """Note that it is being closed, at once if it is idle. Returns its bytes."""
        count = self._sizes.pop(name)
        self.leaving_bytes += count if is_idle else 0
        return count

    def give_back(self, count: int, *, was_leaving: bool = False) -> None:
        """Free the bytes of a model that has been closed, or could not be opened."""
        self.used_bytes -= count
        self.leaving_bytes -= count if was_leaving else 0

    def has_room(self, count: int) -> bool:
        """Whether this many bytes are free."""
        return self.used_bytes + count <= self.budget_bytes

    def victims(self, count: int, is_idle: Callable[[str], bool]) -> list[str] | None:
        """The models to close to make room for this many bytes; None if there is no way."""
        missing = self.used_bytes - self.leaving_bytes + count - self.budget_bytes
        found: list[str] = []
        for name, size in self._sizes.items():
            if missing <= 0:
                break
            if is_idle(name):
                found.append(name)
                missing -= size
        return found if missing <= 0 else None


class OpenModels(Generic[Model]):
    """Opens and closes models. Used in the event loop only."""

    def __init__(
        self,
        budget_bytes: int,
        *,
        open_one: Callable[[str], Awaitable[Model]],
        take_out: Callable[[str], Awaitable[None]],
        is_used: Callable[[str], bool],
        patience_s: float,
    ) -> None:
        """`take_out` removes a model at once, and returns an awaitable that ends it.

        `patience_s` is how long to wait for models in use.
        """
        self.shelf = Shelf(budget_bytes)
        self._open_one = open_one
        self._take_out = take_out
        self._is_used = is_used
        self._patience_s = patience_s
        self._flights: dict[str, asyncio.Task[Model]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._waiting: Counter[str] = Counter()  # requests that are about to use it
        self._turn = asyncio.Lock()  # room is made for one at a time, in the order of arrival

    async def opened(self, name: str, count: int) -> Model:
        """Open a model that takes this many bytes, or wait for it while it is being opened.

        Nothing closes it before the caller's next `await`. Raises NoRoom, and what `open_one`
        raises.
        """
        flight = self._flights.get(name)
        if flight is None:
            flight = asyncio.create_task(self._fly(name, count))
            self._flights[name] = flight
            flight.add_done_callback(lambda done: self._landed(name, done))
        self._waiting[name] += 1
        try:
            # A request that ends early must not cancel the opening for the others.
            return await asyncio.shield(flight)
        finally:
            self._waiting[name] -= 1
            if not self._waiting[name]:
                del self._waiting[name]

    def _landed(self, name: str, flight: asyncio.Task[Model]) -> None:
        del self._flights[name]
        if not flight.cancelled():
            flight.exception()  # retrieved, even if nobody waits any more

    async def _fly(self, name: str, count: int) -> Model:
        until = time.monotonic() + self._patience_s
        async with self._turn:
            while not self._make_room(count):
                if time.monotonic() >= until and not self.shelf.leaving_bytes:
                    raise NoRoom
                await asyncio.sleep(_POLL_S)
            self.shelf.take(count)
        try:
            model = await self._open_one(name)
        except BaseException:
            self.shelf.give_back(count)
            raise
        self.shelf.put(name, count)
        cleared = int(_CLEARED * self.shelf.budget_bytes)
        if count <= cleared and not self.shelf.has_room(count):
            self._make_room(cleared)  # not if few models fit: then none is closed too early
        return model

    def _make_room(self, count: int) -> bool:
        """Start closing what has to be closed. Returns whether there is room now."""
        for victim in self.shelf.victims(count, self._is_idle) or ():
            self.close(victim)
        return self.shelf.has_room(count)

    def _is_idle(self, name: str) -> bool:
        return not self._is_used(name) and name not in self._waiting

    def close(self, name: str) -> None:
        """Close an open model; its bytes are free when it has been closed."""
        is_idle = self._is_idle(name)
        count = self.shelf.remove(name, is_idle=is_idle)
        closing = asyncio.create_task(self._closed(self._take_out(name), count, is_idle))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def _closed(self, ending: Awaitable[None], count: int, was_leaving: bool) -> None:
        try:
            await ending
        finally:
            self.shelf.give_back(count, was_leaving=was_leaving)

    async def stop(self) -> None:
        """End what is being opened, and stop waiting for what is being closed."""
        ending = [*self._flights.values(), *self._closing]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
