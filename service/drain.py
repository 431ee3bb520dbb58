"""The end of the process on a signal: told first, then nothing new, then what is in flight.

uvicorn closes its sockets at once on SIGTERM, so that whoever has not heard yet meets refused
connections. This comes before it. Signals belong to the process and not to the application, so
`service.__main__` installs it, and the application shows `Lifecycle` alone.
"""

import asyncio
import logging
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from service.observe.lifecycle import Lifecycle
from service.settings import Settings
from service.tasks.registry import ModelRegistry

_POLL_S = 0.02
_FATAL_POLL_S = 0.5  # for as long as the process lives
# For answers to be written whose work has been ended.
_LAST_WORDS_S = 1.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)

logger = logging.getLogger(__name__)


class Drain:
    """Call it in the event loop once the server has installed its own handlers."""

    def __init__(self, settings: Settings, lifecycle: Lifecycle, registry: ModelRegistry) -> None:
        self._settings = settings
        self._lifecycle = lifecycle
        self._registry = registry
        self._loop = asyncio.get_running_loop()
        self._again = asyncio.Event()
        self._drain: asyncio.Task[None] | None = None
        self._watch = self._loop.create_task(self._end_when_fatal())
        # What ends the server.
        self._before: dict[int, Any] = {number: signal.getsignal(number) for number in _SIGNALS}
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self._loop.call_soon_threadsafe(self._begin, number)

    def _begin(self, number: int) -> None:
        if self._drain is not None:
            # Asked twice: at once, then.
            self._again.set()
            return
        logger.info("%s: ending", signal.Signals(number).name)
        # Ctrl-C is a person who waits; nobody else has to hear of it.
        lame_duck_s = self._settings.lame_duck_s if number == signal.SIGTERM else 0.0
        self._drain = self._loop.create_task(self._run(number, lame_duck_s))

    async def _run(self, number: int, lame_duck_s: float) -> None:
        self._lifecycle.phase = "leaving"
        await self._wait(lame_duck_s, lambda: False)
        self._lifecycle.phase = "draining"
        if not await self._wait(self._settings.grace_s, self._is_idle):
            logger.warning("%d requests have not ended in time", self._lifecycle.in_flight)
            # They are told 503, and need a moment for that.
            await self._registry.stop()
            self._again.clear()
            if not await self._wait(_LAST_WORDS_S, self._is_idle):
                # So are those that wait for no engine, but for their own bodies.
                self._lifecycle.cut()
                await self._wait(_LAST_WORDS_S, self._is_idle)
        self._end_server(number)

    async def _wait(self, limit_s: float, is_over: Callable[[], bool]) -> bool:
        """Wait for this, for so long, or for a second signal; whether it came to be."""
        until = self._loop.time() + limit_s
        while not is_over():
            if self._loop.time() >= until or self._again.is_set():
                return False
            await asyncio.sleep(_POLL_S)
        return True

    def _is_idle(self) -> bool:
        return not self._lifecycle.in_flight

    async def _end_when_fatal(self) -> None:
        """What cannot go on is ended as by a signal, without waiting for what never comes."""
        while self._lifecycle.fatal is None:
            await asyncio.sleep(_FATAL_POLL_S)
        self._lifecycle.phase = "draining"
        await self._wait(_LAST_WORDS_S, self._is_idle)
        self._end_server(signal.SIGTERM)

    def _end_server(self, number: int) -> None:
        self._before[number](number, None)
