"""Work on large texts, off the event loop."""

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

Result = TypeVar("Result")

# Characters of one request from which work on text leaves the event loop's thread.
LARGE_CHARS = 8192
# Such work holds Python's lock for milliseconds at a time, and the event loop waits behind all of
# it: with more threads it would wait longer, and nothing would be done sooner.
_EXECUTOR = ThreadPoolExecutor(2, "text")


async def in_thread(function: Callable[[], Result]) -> Result:
    """Call the function in one of the threads, for the request that is being answered."""
    context = contextvars.copy_context()
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_EXECUTOR, partial(context.run, function))


async def off_loop(size: int, function: Callable[[], Result]) -> Result:
    """Call the function: at once for a small request, else in a thread, so that no one waits."""
    return function() if size <= LARGE_CHARS else await in_thread(function)
