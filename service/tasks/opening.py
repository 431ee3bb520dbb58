"""Opens bundles as engines, and ends engines."""

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from service.bundle.files import BundleError
from service.bundle.store import read_bundle, read_manifest
from service.decoding.cache_budget import CacheBudgets
from service.observe.metrics import Metrics
from service.runtime.allocator import return_free_memory
from service.runtime.cpus import usable_cpus
from service.settings import Settings
from service.tasks.cards import Card
from service.tasks.engine import Engine
from service.tasks.folders import version_of
from service.tasks.kinds import Surroundings, open_engine, wanted_precision
from service.tasks.trial import PATIENCE, Trial

# A step holds the GIL for one or two tenths of its time: more threads would wait for each other.
MAX_DEFAULT_THREADS = 4
_POLL_S = 0.02
# After this, a worker that hangs in a step is left running until the process ends.
STOP_TIMEOUT_S = 5.0


class Opener:
    """Opens bundles of the models folder. Its methods are slow and need no event loop."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        # One key for all models, so that a state of another model is recognized as such.
        self._settings = settings.model_copy(update={"state_key": settings.signing_key()})
        self.budgets = CacheBudgets.of(settings)
        threads = settings.engine_threads or min(usable_cpus(), MAX_DEFAULT_THREADS)
        self.trial = Trial(settings, threads)
        self._surroundings = Surroundings(
            settings=self._settings, threads=threads, metrics=metrics, budgets=self.budgets
        )

    def open(self, folder: Path, version: str | None) -> Engine:
        """Open a bundle in this process, in this version if one is given. Raises BundleError."""
        bundle = read_bundle(folder, contained=True)
        if version is not None and version != version_of(bundle.manifest):
            raise _replaced(folder)
        return open_engine(bundle, self._surroundings)

    def card(self, folder: Path, version: str | None = None) -> Card:
        """What the manifest says, in this version if one is given. Raises BundleError."""
        manifest = read_manifest(folder, contained=True)
        if version is not None and version != version_of(manifest):
            raise _replaced(folder)
        card = Card.of_manifest(manifest, wanted_precision(manifest, self._settings))
        budget = self._settings.models_bytes
        if budget is not None and card.open_bytes > budget:
            raise BundleError(
                f"{folder.name}: it takes about {_mib(card.open_bytes)} MiB when it is open, but "
                f"models_bytes leaves {_mib(budget)} MiB to each server process"
            )
        return card

    @contextmanager
    def in_time(self, name: str, give_up: Callable[[str], None] | None) -> Iterator[None]:
        """Call `give_up` with the cause from another thread if the body takes too long."""
        if give_up is None:
            yield
            return
        limit_s = PATIENCE * self._settings.open_timeout_s
        cause = f"{name}: opening it takes more than {limit_s:g} s, three times open_timeout_s"
        timer = threading.Timer(limit_s, give_up, [cause])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()


def _replaced(folder: Path) -> BundleError:
    return BundleError(f"{folder.name}: it was replaced while it was being opened; try again")


def _mib(count: int) -> str:
    return f"{count / 2**20:.1f}"


class Ending:
    """Ends engines, and returns their memory to the system."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._next: asyncio.Task[None] | None = None  # the return that has not begun yet

    async def when_free(self, engine: Engine) -> None:
        """Wait for the requests that use an engine, then end it."""
        try:
            while engine.holds:
                await asyncio.sleep(_POLL_S)
        finally:
            await engine.stop(STOP_TIMEOUT_S)
        # Its caches contain reference cycles, and a model's memory is worth a garbage collection.
        del engine
        if self._next is None:
            self._next = asyncio.create_task(self._return())
        await asyncio.shield(self._next)

    async def _return(self) -> None:
        """Return the memory of all engines that have ended so far."""
        async with self._turn:
            self._next = None
            await asyncio.to_thread(return_memory)


def return_memory() -> None:
    """Return the memory of an ended engine to the system."""
    gc.collect()
    return_free_memory()
