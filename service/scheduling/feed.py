"""Streaming results from a worker's thread to the event loop, in order.

A client may read more slowly than the engine writes, or not at all. Its tokens wait here in columns
of a few bytes a token; the limits on a request bound their number.
"""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from threading import Lock
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

Item = TypeVar("Item")


class Feed(Generic[Item]):
    """A queue of items that a worker's thread fills and the event loop empties.

    An item is a source that has news. It is put in again only after its news have been taken, so
    the feed holds each source at most once. Create the feed in the event loop.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[Item | None] = asyncio.Queue()  # None: the work has ended

    def put(self, item: Item) -> None:
        """Append an item, from any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)

    async def during(self, work: Coroutine[Any, Any, None]) -> AsyncGenerator[Item, None]:
        """Yield the items put while `work` runs, to the last one; then raise what `work` raised.

        Closing the generator cancels the work.
        """
        task = asyncio.create_task(work)
        task.add_done_callback(lambda _: self._items.put_nowait(None))
        try:
            while (item := await self._items.get()) is not None:
                yield item
            await task
        finally:
            if task.done() and not task.cancelled():
                # Retrieve the exception even if the reader has left, or asyncio logs it.
                task.exception()
            task.cancel()


class News:
    """Tokens of one source that its reader has not taken yet, in columns, and whether it ended."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._kinds: list[tuple[np.dtype[Any], tuple[int, ...]]] = []
        self._columns: list[bytearray] = []
        self._has_ended = False
        self._is_known = False  # whether it is in the feed already

    def add(self, columns: Sequence[npt.NDArray[Any]]) -> bool:
        """Append tokens, given as `columns` [T, …]; true if the caller must put it into the feed.

        The first column has one number a token. Dtypes and shapes are the same at every call.
        """
        with self._lock:
            if not self._columns:
                self._kinds = [(column.dtype, column.shape[1:]) for column in columns]
                self._columns = [bytearray() for _ in columns]
            for held, column in zip(self._columns, columns, strict=True):
                held.extend(column.tobytes())
            return self._must_be_put()

    def end(self) -> bool:
        """Mark the end; true if the caller must put it into the feed."""
        with self._lock:
            self._has_ended = True
            return self._must_be_put()

    def _must_be_put(self) -> bool:
        was_known, self._is_known = self._is_known, True
        return not was_known

    def take(self) -> tuple[list[npt.NDArray[Any]], bool]:
        """The columns added since the last call (none without tokens), and whether it has ended."""
        with self._lock:
            taken, self._columns = self._columns, []
            self._is_known = False
            has_ended = self._has_ended
        if not taken:
            return [], has_ended
        count = len(taken[0]) // self._kinds[0][0].itemsize
        columns = [
            np.frombuffer(held, dtype).reshape(count, *shape)
            for held, (dtype, shape) in zip(taken, self._kinds, strict=True)
        ]
        return columns, has_ended
