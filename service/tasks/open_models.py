"""Which models are open: opened at their first use, under a budget of bytes.

When there is no room, those that have not been used for the longest time are closed first; one that
a request uses stays open. Each model is opened once for all requests that wait for it.
"""

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Model = TypeVar("Model")

_POLL_S = 0.02


class NoRoom(Exception):
    """The models in use leave no room, and none of them has become free in time."""


class Shelf:
    """What is open, in the order of use, and what that takes. Numbers alone."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.used_bytes = 0  # what is open, being opened and being closed
        self._sizes: OrderedDict[str, int] = OrderedDict()  # least recently used first

    def __contains__(self, name: str) -> bool:
        """Whether it is open."""
        return name in self._sizes

    def touch(self, name: str) -> None:
        """Note that it is used."""
        self._sizes.move_to_end(name)

    def take(self, count: int) -> None:
        """Reserve bytes."""
        self.used_bytes += count

    def give_back(self, count: int) -> None:
        """Return reserved bytes."""
        self.used_bytes -= count

    def put(self, name: str, count: int) -> None:
        """Note what is open now, in bytes that have been reserved."""
        self._sizes[name] = count

    def remove(self, name: str) -> int:
        """Note that it is being closed; the bytes to return when it has been."""
        return self._sizes.pop(name)

    def victims(self, count: int, is_idle: Callable[[str], bool]) -> list[str] | None:
        """What to close to have room for so many bytes; None if that is not enough."""
        missing = self.used_bytes + count - self.budget_bytes
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
        """`take_out` removes a model at once, and returns what then ends it.

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
        """Open a model that takes so many bytes, or wait for it while it is being opened.

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
            # A request that ends early leaves the others their model.
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
            while (victims := self.shelf.victims(count, self._is_idle)) is None:
                if time.monotonic() >= until:
                    raise NoRoom
                await asyncio.sleep(_POLL_S)
            closing = [self.close(victim) for victim in victims]
            self.shelf.take(count)
        try:
            # Their memory is free before more is taken.
            await asyncio.gather(*closing)
            model = await self._open_one(name)
        except BaseException:
            self.shelf.give_back(count)
            raise
        self.shelf.put(name, count)
        return model

    def _is_idle(self, name: str) -> bool:
        return not self._is_used(name) and name not in self._waiting

    def close(self, name: str) -> asyncio.Task[None]:
        """Close a model; its bytes are free when it has been closed."""
        count = self.shelf.remove(name)
        closing = asyncio.create_task(self._closed(self._take_out(name), count))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        return closing

    async def _closed(self, ending: Awaitable[None], count: int) -> None:
        try:
            await ending
        finally:
            self.shelf.give_back(count)

    async def stop(self) -> None:
        """End what is being opened, and stop waiting for what is being closed."""
        ending = [*self._flights.values(), *self._closing]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
