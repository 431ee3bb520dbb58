"""Work of the event loop that may wait, in turns: a little each time round, whoever asks for it.

What clients send in many small parts (chunks, lines) costs more by the part than by the byte. Taken
in turns, it slows down those who send it, and nobody else, however many they are.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable

# Of one round of the event loop; a request needs a handful of rounds.
_ROUND_S = 0.001


class Turns:
    """The queue of an event loop; it belongs to one application."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None] | asyncio.Future[None]] = deque()
        self._runs = False

    def call(self, work: Callable[[], None]) -> None:
        """Call this when its turn comes; it should take less than a millisecond."""
        self._wait(work)

    async def take(self) -> None:
        """Wait for a turn; what the caller does until it awaits again is that turn."""
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
                    # Its owner runs in the next round, and that is this round's work.
                    break
        finally:
            self._runs = bool(self._waiting)
            if self._runs:
                asyncio.get_running_loop().call_soon(self._run)
