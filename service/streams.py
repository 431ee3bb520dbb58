"""From a worker's thread to the event loop while work runs: what it has done so far, in order."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")


class Feed(Generic[Item]):
    """Items that a worker's thread puts in and the event loop takes out.

    It holds what its reader has not taken yet: a bounded number of items, since every piece of work
    tells of a bounded number of tokens. Create it in the event loop.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[Item | None] = asyncio.Queue()  # None: the work has ended

    def put(self, item: Item) -> None:
        """Append an item, from any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)

    async def during(self, work: Coroutine[Any, Any, None]) -> AsyncGenerator[Item, None]:
        """The items that are put while `work` runs, to the last one; then what it raises.

        Close it, and the work is cancelled.
        """
        task = asyncio.create_task(work)
        task.add_done_callback(lambda _: self._items.put_nowait(None))
        try:
            while (item := await self._items.get()) is not None:
                yield item
            await task
        finally:
            if task.done() and not task.cancelled():
                # Known here, whether or not the reader stayed to hear of it.
                task.exception()
            task.cancel()
