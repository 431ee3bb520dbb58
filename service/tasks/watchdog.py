"""The watchdog of the engines: replaces a worker that died, ends the process if one hangs."""

import asyncio
import logging
import time

from service.observe.lifecycle import Lifecycle
from service.tasks.registry import ModelRegistry

# More restarts than this in a minute: the cause will not go away by itself.
_MOST_RESTARTS = 3
_RESTARTS_WITHIN_S = 60.0

logger = logging.getLogger(__name__)


async def watch_engines(registry: ModelRegistry, lifecycle: Lifecycle, limit_s: float) -> None:
    """Check the engines at intervals, until cancelled or until the process has to end.

    A thread that hangs in a model run cannot be ended, and what it holds is lost to the process. So
    every request that waits for it fails, `lifecycle.fatal` is set, and `Drain` ends the process.
    A step hangs if it takes longer than `limit_s` while the rest of the process runs. Time by which
    this check itself is late does not count: the whole process stood still (SIGSTOP, a frozen
    container).
    """
    restarts: list[float] = []
    interval_s = min(1.0, limit_s / 4)
    looked_at = time.monotonic()
    while lifecycle.fatal is None:
        await asyncio.sleep(interval_s)
        before, looked_at = looked_at, time.monotonic()
        ran_s = min(looked_at - before, 2 * interval_s)
        for name, engine in list(registry.engines.items()):
            engine.workers.look(ran_s)
            if engine.workers.stalled_s() > limit_s:
                lifecycle.fatal = f"the engine of {name} hangs in a step"
                logger.critical("%s; its requests fail and the process ends", lifecycle.fatal)
                engine.workers.abandon()
                continue
            restarted = engine.workers.restart_dead()
            if restarted:
                logger.error("model %s: %d workers died and were replaced", name, restarted)
                now = time.monotonic()
                restarts = [x for x in restarts if now - x < _RESTARTS_WITHIN_S]
                restarts += [now] * restarted
            if len(restarts) > _MOST_RESTARTS:
                lifecycle.fatal = f"the engine of {name} keeps dying"
                logger.critical("%s", lifecycle.fatal)
