"""Opens models at their first use and closes them again, if `models_bytes` is set.

A bundle that is in the folder at the start has not been tried, so a trial process first opens each
version once. If a folder has changed since the last look, all server processes agree on the new
version before it is opened.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from service.bundle.files import BundleError
from service.errors import (
    BundleUnusable,
    DeadlineExceeded,
    ModelNotFound,
    ModelUnusable,
    NoRoomForModel,
)
from service.observe.metrics import Metrics
from service.observe.request_context import current_request
from service.settings import Settings
from service.tasks.cards import Catalogue
from service.tasks.engine import Engine
from service.tasks.folders import Stamp, stamp_of
from service.tasks.open_models import NoRoom, OpenModels
from service.tasks.opening import Ending, Opener

# How long a request may wait for models in use to become free.
_PATIENCE_S = 5.0
# The server serves after this, even if its trial process has not started yet.
_START_S = 5.0
# Bundles that are new wait for the only trial process; the others must not wait behind them.
_THREADS = 4
_REMOVED = "no such model; its bundle has been removed"
_REPLACED = "it was replaced while it was being opened; try again"

logger = logging.getLogger(__name__)


class FirstUse:
    """The open models of a process, out of its catalogue. Used in the event loop."""

    def __init__(
        self,
        settings: Settings,
        budget_bytes: int,
        *,
        catalogue: Catalogue,
        engines: dict[str, Engine],
        opener: Opener,
        metrics: Metrics,
        show: Callable[[Engine], None],
    ) -> None:
        """`show` starts serving an engine."""
        self._show = show
        self._settings = settings
        self._catalogue = catalogue
        self._engines = engines
        self._opener = opener
        self._metrics = metrics
        self._ending = Ending()
        self._executor = ThreadPoolExecutor(_THREADS, "opening")
        self.models: OpenModels[Engine] = OpenModels(
            budget_bytes,
            open_one=self._open,
            take_out=self._take_out,
            is_used=lambda name: bool(engines[name].holds),
            patience_s=min(_PATIENCE_S, settings.request_timeout_s),
        )

    async def start(self) -> None:
        """Start the trial process first, so that the first request does not wait for it."""
        loop = asyncio.get_running_loop()
        await asyncio.wait([loop.run_in_executor(self._executor, self._warm)], timeout=_START_S)

    def _warm(self) -> None:
        with suppress(BundleError):  # then it is started when it is needed
            self._opener.trial.warm()

    async def stop(self) -> None:
        """End what is being opened and closed."""
        await self.models.stop()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def found(self, name: str) -> Engine | None:
        """The model if it is open; notes that it is used."""
        engine = self._engines.get(name)
        if engine is not None:
            self.models.shelf.touch(name)
        return engine

    async def opened(
        self, name: str, follow: Callable[[str, Stamp | None], Awaitable[None]]
    ) -> Engine:
        """A model of the catalogue, opened if necessary; it stays open until the next `await`.

        `follow` makes the server serve the new content of a folder. Raises ModelNotFound,
        ModelUnusable, NoRoomForModel and DeadlineExceeded.
        """
        request = current_request()
        limit_s = min(self._settings.request_timeout_s, request.timeout_s or float("inf"))
        left_s = limit_s - (time.monotonic() - request.timed_from)
        try:
            async with asyncio.timeout(left_s):
                return await self._opened(name, follow)
        except TimeoutError as error:
            raise DeadlineExceeded("the deadline passed before the model was open") from error
        except NoRoom as error:
            mib = self.models.shelf.budget_bytes / 2**20
            raise NoRoomForModel(
                f"the models in use fill the memory for open models ({mib:.0f} MiB of models_bytes "
                "in each server process); try again",
                headers={"Retry-After": "1"},
            ) from error
        except (BundleError, BundleUnusable) as error:
            raise ModelUnusable(f"the model cannot be opened: {error}") from error

    async def _opened(
        self, name: str, follow: Callable[[str, Stamp | None], Awaitable[None]]
    ) -> Engine:
        folder = self._settings.models_dir / name
        loop = asyncio.get_running_loop()
        stamp = await loop.run_in_executor(self._executor, stamp_of, folder)
        if stamp != self._catalogue.stamps.get(name):
            await follow(name, stamp)
        if name in self._catalogue.failed:
            raise BundleError(self._catalogue.failed[name])
        card = self._catalogue.cards.get(name)
        if card is None:
            raise ModelNotFound(_REMOVED)
        engine = self._engines.get(name) or await self.models.opened(name, card.open_bytes)
        if self._engines.get(name) is not engine:
            # Closed for a new version before this request could hold it.
            raise BundleError(f"{name}: {_REPLACED}")
        return engine

    async def _open(self, name: str) -> Engine:
        """Open a model in a thread. Raises BundleError and ModelNotFound."""
        began = time.monotonic()
        loop = asyncio.get_running_loop()
        # It may have been removed while it waited for room.
        card, stamp = self._catalogue.cards.get(name), self._catalogue.stamps.get(name)
        if card is None or stamp is None:
            raise ModelNotFound(_REMOVED)
        try:
            engine = await loop.run_in_executor(self._executor, self._tried_and_opened, name, stamp)
        except BundleError as error:
            if self._catalogue.cards.get(name) is not card:
                # What is served now has not failed.
                raise BundleError(f"{name}: {_REPLACED}") from error
            self._catalogue.failed[name] = str(error)
            self._metrics.model_loads.labels("failed").inc()
            logger.error("model %s cannot be served: %s", name, error)  # noqa: TRY400 (no bug)
            raise
        if self._catalogue.cards.get(name) is not card:
            await engine.stop()
            raise BundleError(f"{name}: {_REPLACED}")
        self._engines[name] = engine
        self._show(engine)
        seconds = time.monotonic() - began
        self._metrics.open_seconds.observe(seconds)
        self._metrics.model_loads.labels("opened").inc()
        logger.debug("model %s: opened in %.0f ms", name, 1e3 * seconds)
        return engine

    def _tried_and_opened(self, name: str, stamp: Stamp) -> Engine:
        folder = self._settings.models_dir / name
        catalogue = self._catalogue
        tried = catalogue.tried.get(name)
        if tried is None or tried[0] != stamp:
            self._opener.trial.stays = len(catalogue.tried) + 1 < len(catalogue.cards)
            tried = (stamp, self._opener.trial.check(folder))
            catalogue.tried[name] = tried
        return self._opener.open(folder, tried[1])

    def let_go(self, name: str) -> None:
        """Close a model whose bundle has changed, if it is open; requests that use it keep it."""
        if name in self.models.shelf:
            self.models.close(name)

    def _take_out(self, name: str) -> Awaitable[None]:
        engine = self._engines.pop(name)
        self._metrics.forget_model(name)
        self._metrics.model_loads.labels("closed").inc()
        logger.debug("model %s: closed", name)
        return self._ending.when_free(engine)
