"""Turns for low-priority work in the event loop: one millisecond of it in each round of the loop.

Input in many small parts (chunks, lines) costs more by the part than by the byte. Handled in turns,
it slows down the clients who send it, however many, and nobody else.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable

# Time for turns in one round of the event loop; a request needs a handful of rounds.
_ROUND_S = 0.001


class Turns:
    """The queue of turns of one event loop, and so of one application."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None] | asyncio.Future[None]] = deque()
        self._runs = False

    def call(self, work: Callable[[], None]) -> None:
        """Call `work` when its turn comes; it should take less than a millisecond."""
        self._wait(work)

    async def take(self) -> None:
        """Wait for a turn, which lasts until the caller awaits again."""
        turn = asyncio.get_running_loop().create_future()
        self._wait(turn)
        await turn

    def _wait(self, turn: "Callable[[], None] | asyncio.Future[None]") -> None:
        self._waiting.append(turn)
        if not self._runs:
            self._runs = True
            asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        until = time.perf_counter() + _ROUND_S
        try:
            while self._waiting and time.perf_counter() < until:
                turn = self._waiting.popleft()
                if not isinstance(turn, asyncio.Future):
                    turn()
                elif not turn.done():
                    turn.set_result(None)
                    # The waiting task runs in the next round, and uses up this round's time.
                    break
        finally:
            self._runs = bool(self._waiting)
            if self._runs:
                asyncio.get_running_loop().call_soon(self._run)
