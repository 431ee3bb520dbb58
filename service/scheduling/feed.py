"""From a worker's thread to the event loop while work runs: what it has done so far, in order.

A client may read more slowly than the engine writes, or not at all: what waits for it lies in
columns of a few bytes a token, which the limits of a request bound.
"""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from threading import Lock
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

Item = TypeVar("Item")


class Feed(Generic[Item]):
    """Items that a worker's thread puts in and the event loop takes out.

    An item is one who has news, and is put in anew only when its news have been taken: so the feed
    holds no more than there are of them. Create it in the event loop.
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


class News:
    """What one source has told and its reader has not taken yet: columns of tokens, and an end."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._kinds: list[tuple[np.dtype[Any], tuple[int, ...]]] = []
        self._columns: list[bytearray] = []
        self._has_ended = False
        self._is_known = False  # to the reader: it has been put into the feed

    def add(self, columns: Sequence[npt.NDArray[Any]]) -> bool:
        """Append tokens, given as `columns` [T, …]; whether the reader has to be told.

        The first column has one number a token; all are of the same kinds each time.
        """
        with self._lock:
            if not self._columns:
                self._kinds = [(column.dtype, column.shape[1:]) for column in columns]
                self._columns = [bytearray() for _ in columns]
            for held, column in zip(self._columns, columns, strict=True):
                held.extend(column.tobytes())
            return self._tell()

    def end(self) -> bool:
        """Nothing follows; whether the reader has to be told."""
        with self._lock:
            self._has_ended = True
            return self._tell()

    def _tell(self) -> bool:
        tells, self._is_known = not self._is_known, True
        return tells

    def take(self) -> tuple[list[npt.NDArray[Any]], bool]:
        """The columns since the last time, none where there are no tokens; whether it has ended."""
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
