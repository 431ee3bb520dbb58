"""Graceful shutdown on SIGTERM or SIGINT: fail readiness, then drain, then let the server end.

On its own, uvicorn closes its sockets at once on SIGTERM, and clients whose load balancer has not
noticed yet meet refused connections. So this runs first: /readyz fails while requests are still
served (the lame-duck time), then new connections are refused and requests in flight may finish
(the grace time). From the signal on, every answer closes its connection. So a proxy has no
connection left when new ones are refused; it then goes to another server and loses no request.

Signals belong to the process, not to the application: `service.__main__` installs this, and the
application sees only `Lifecycle`.
"""

import asyncio
import logging
import signal
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

from service.observe.lifecycle import Lifecycle
from service.settings import Settings
from service.tasks.registry import ModelRegistry

_POLL_S = 0.02
_FATAL_POLL_S = 0.5  # for as long as the process lives
# For the first requests of connections that were accepted last.
_FIRST_REQUEST_S = 0.1
# For requests whose work was ended: time to write their answers.
_LAST_WORDS_S = 1.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)

logger = logging.getLogger(__name__)


class Drain:
    """Takes over the signals. Create it in the event loop, after the server's own handlers."""

    def __init__(
        self,
        settings: Settings,
        lifecycle: Lifecycle,
        registry: ModelRegistry,
        *,
        is_told: bool = False,
    ) -> None:
        """With `is_told`, a supervisor passes signals on (`begin`, `hurry`).

        The process then ignores a terminal's SIGINT, which the supervisor gets as well, and a
        SIGTERM of its own never counts as the second one.
        """
        self._settings = settings
        self._lifecycle = lifecycle
        self._registry = registry
        self._loop = asyncio.get_running_loop()
        self._again = asyncio.Event()
        # Stops listening; the server that runs sets it.
        self.refuse: Callable[[], None] = lambda: None
        self._drain: asyncio.Task[None] | None = None
        self._watch = self._loop.create_task(self._end_when_fatal())
        # The server's own handlers, which end it.
        self._before: dict[int, Any] = {number: signal.getsignal(number) for number in _SIGNALS}
        if is_told:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, self._on_term)
            return
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        again = self._drain is not None
        self._loop.call_soon_threadsafe(self.hurry if again else partial(self.begin, number))

    def _on_term(self, number: int, _: FrameType | None) -> None:
        self._loop.call_soon_threadsafe(self.begin, number)

    def hurry(self) -> None:
        """End every wait of the shutdown, as a second signal does."""
        self._again.set()

    def begin(self, number: int) -> None:
        """Begin to shut down, as on this signal, unless it has begun."""
        if self._drain is not None:
            if self._lifecycle.phase == "draining":
                self.refuse()  # this process may have begun before the others
            return
        logger.info("%s: shutting down", signal.Signals(number).name)
        # Ctrl-C comes from a person who waits, without a load balancer that has to notice.
        lame_duck_s = self._settings.lame_duck_s if number == signal.SIGTERM else 0.0
        self._drain = self._loop.create_task(self._run(number, lame_duck_s))

    async def _run(self, number: int, lame_duck_s: float) -> None:
        self._lifecycle.phase = "leaving"
        await self._wait(lame_duck_s, lambda: False)
        self._lifecycle.drain()
        self.refuse()
        await self._wait(_FIRST_REQUEST_S, lambda: False)
        if not await self._wait(self._settings.grace_s, self._is_idle):
            logger.warning("%d requests did not end in time", self._lifecycle.in_flight)
            # They get 503; `_LAST_WORDS_S` is for sending it.
            await self._registry.stop()
            self._again.clear()
            if not await self._wait(_LAST_WORDS_S, self._is_idle):
                # Also end the requests that wait for the rest of their body, not for an engine.
                self._lifecycle.cut()
                await self._wait(_LAST_WORDS_S, self._is_idle)
        self._end_server(number)

    async def _wait(self, limit_s: float, is_over: Callable[[], bool]) -> bool:
        """Wait until `is_over`, the limit or a second signal; whether `is_over` came first."""
        until = self._loop.time() + limit_s
        while not is_over():
            if self._loop.time() >= until or self._again.is_set():
                return False
            await asyncio.sleep(_POLL_S)
        return True

    def _is_idle(self) -> bool:
        return not self._lifecycle.in_flight

    async def _end_when_fatal(self) -> None:
        """End as on a signal after a fatal error, without waiting for work that cannot finish."""
        while self._lifecycle.fatal is None:
            await asyncio.sleep(_FATAL_POLL_S)
        self._lifecycle.drain()
        await self._wait(_LAST_WORDS_S, self._is_idle)
        self._end_server(signal.SIGTERM)

    def _end_server(self, number: int) -> None:
        self._before[number](number, None)
