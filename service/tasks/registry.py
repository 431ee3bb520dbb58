"""Which models are served: bundles loaded, replaced and unloaded while requests are answered.

A version is opened and verified before it is shown, in a process of its own first where it comes
while others are served. Requests hold the version that they began with,
and it ends when the last of them has ended.
"""

import asyncio
import gc
import hashlib
import logging
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from service.bundle.files import BundleError
from service.bundle.store import Manifest, read_bundle
from service.decoding.cache_budget import CacheBudgets
from service.errors import BundleUnusable, InvalidRequest, ModelNotFound
from service.observe.metrics import Metrics
from service.observe.request_context import current_request
from service.runtime.allocator import return_free_memory
from service.runtime.cpus import usable_cpus
from service.settings import Settings
from service.tasks.engine import Ability, Engine
from service.tasks.kinds import Surroundings, open_engine
from service.tasks.trial import PATIENCE, Trial

Able = TypeVar("Able")

# Python's lock is held for a tenth of a step or two: more threads than this wait for each other.
MAX_DEFAULT_THREADS = 4
MANIFEST = "manifest.json"
_POLL_S = 0.02
# A worker that hangs in a step is left to the end of the process.
_STOP_TIMEOUT_S = 5.0

Stamp = tuple[int, int, int]  # of a manifest: a bundle is written as a whole, it with the rest

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Change:
    """What became of asking for a model."""

    name: str
    is_served: bool
    changed: bool


class ModelRegistry:
    """The served models by name. Its methods are for the event loop."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        # One key for all models, so that a state of another one is known as such.
        self._settings = settings.model_copy(update={"state_key": settings.signing_key()})
        self._metrics = metrics
        self._budgets = CacheBudgets.of(settings)
        self.engines: dict[str, Engine] = {}
        self.failed: dict[str, str] = {}  # bundles that cannot be served, and why
        share = max(1, usable_cpus() // settings.workers)
        self._threads = settings.engine_threads or min(share, MAX_DEFAULT_THREADS)
        self._trial = Trial(settings, self._threads)
        self._changing = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()

    # --- start and end --------------------------------------------------------------------------

    def load_all(self, give_up: Callable[[str], None] | None = None) -> None:
        """Open every bundle of the folder; no event loop is needed. Raises BundleError.

        What the server starts with is opened here at once, unless the others are served whatever it
        is. It cannot be interrupted: `give_up` is called from another thread, with the cause, where
        it takes too long, and may end the process.
        """
        skips = self._settings.on_bad_bundle == "skip"
        for folder in bundle_folders(self._settings.models_dir):
            try:
                with self._in_time(folder.name, None if skips else give_up):
                    self.engines[folder.name] = self._open(folder, tries=skips)
            except BundleError as error:
                if not skips:
                    skip = "UNROLL_ON_BAD_BUNDLE=skip serves the others"
                    raise BundleError(f"{error}; {skip}") from error
                self._fail(folder.name, error)
        if not self.engines:
            raise BundleError(f"{self._settings.models_dir}: no bundle in it can be served")

    @contextmanager
    def _in_time(self, name: str, give_up: Callable[[str], None] | None) -> Iterator[None]:
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

    def start(self, engines: Sequence[Engine] | None = None) -> None:
        """Begin to serve what is open, or these."""
        if engines is not None:
            self.engines = {engine.manifest.name: engine for engine in engines}
        for engine in self.engines.values():
            self._show(engine)

    async def stop(self) -> None:
        """End everything, whoever still asks."""
        for task in self._retiring:
            task.cancel()
        await asyncio.to_thread(self._trial.close)
        engines = [*self.engines.values()]
        await asyncio.gather(*self._retiring, return_exceptions=True)
        await asyncio.gather(*(engine.stop(_STOP_TIMEOUT_S) for engine in engines))

    # --- use ------------------------------------------------------------------------------------

    def held(self, name: str | None, ability: Ability[Any] | None = None) -> Engine:
        """The engine of a model, held for the request that asks.

        Without a name it is the only one, or the only one that has the ability. Raises
        ModelNotFound and InvalidRequest.
        """
        engine = self.engines.get(self._only(ability) if name is None else name)
        if engine is None:
            served = ", ".join(sorted(self.engines)) or "none"
            raise ModelNotFound(f"there is no such model; there are {served}")
        current_request().hold(engine)
        return engine

    def able(self, name: str | None, ability: Ability[Able], otherwise: str) -> Able:
        """The same engine, asked for its ability. Raises InvalidRequest(otherwise), too."""
        found = ability.of(self.held(name, ability))
        if found is None:
            raise InvalidRequest.of_option("model", otherwise)
        return found

    def all_able(self, ability: Ability[Able]) -> list[Able]:
        """Every engine that has the ability, by name."""
        engines = (ability.of(engine) for _, engine in sorted(self.engines.items()))
        return [engine for engine in engines if engine is not None]

    def _only(self, ability: Ability[Any] | None) -> str:
        fitting = [
            name for name, x in self.engines.items() if ability is None or ability in x.abilities
        ]
        # With none that fits, the only one says what it is for.
        fitting = fitting or list(self.engines)
        if len(fitting) != 1:
            served = ", ".join(sorted(fitting)) or "none"
            raise InvalidRequest.of_option("model", f"name one of the served models: {served}")
        return fitting[0]

    def refuse_if_full(self, client: str) -> None:
        """Raise QueueFull where no model has room for anything.

        Known before a body is read: a flood of requests has to cost little.
        """
        refusals = [engine.workers.refusal(client) for engine in self.engines.values()]
        if refusals and all(refusals):
            raise next(x for x in refusals if x is not None)

    # --- changes --------------------------------------------------------------------------------

    async def load(self, name: str) -> Change:
        """Serve a bundle of the folder, if it is not served. Raises what `reload` raises."""
        async with self._changing:
            if name in self.engines:
                return Change(name, is_served=True, changed=False)
            await self._replace(name)
            return Change(name, is_served=True, changed=True)

    async def reload(self, name: str) -> Change:
        """Serve a bundle as it is on disk now.

        Raises ModelNotFound where there is none, and BundleUnusable where it cannot be served; what
        was served goes on then.
        """
        async with self._changing:
            await self._replace(name)
            return Change(name, is_served=True, changed=True)

    async def unload(self, name: str) -> Change:
        """Serve a model no longer. Raises ModelNotFound."""
        async with self._changing:
            engine = self.engines.pop(name, None)
            if engine is None:
                raise ModelNotFound("no model of that name is served")
            self._metrics.forget_model(name)
            self._metrics.model_loads.labels("unloaded").inc()
            logger.info("model %s: unloaded", name)
            self._retire(engine)
            return Change(name, is_served=False, changed=True)

    async def _replace(self, name: str) -> None:
        # By the listing, and never by a path made of the name.
        folders = {x.name: x for x in await asyncio.to_thread(self._folders)}
        if name not in folders:
            raise ModelNotFound("there is no bundle of that name in the models folder")
        try:
            engine = await asyncio.to_thread(self._open, folders[name], tries=True)
        except BundleError as error:
            self._fail(name, error)
            raise BundleUnusable(str(error)) from error
        before = self.engines.get(name)
        self._show(engine)
        self.engines[name] = engine
        self.failed.pop(name, None)
        logger.info("model %s: %s", name, "loaded" if before is None else "reloaded")
        if before is not None:
            self._retire(before)

    def _folders(self) -> list[Path]:
        try:
            return bundle_folders(self._settings.models_dir)
        except BundleError:
            return []

    def _show(self, engine: Engine) -> None:
        engine.start()
        manifest = engine.manifest
        self._metrics.forget_model(manifest.name)
        labels = (manifest.name, engine.precision, manifest.task, version_of(manifest)[:12])
        self._metrics.model_info.labels(*labels).set(1)
        self._metrics.model_loads.labels("loaded").inc()

    def _fail(self, name: str, error: BundleError) -> None:
        self.failed[name] = str(error)
        self._metrics.model_loads.labels("failed").inc()
        logger.error("model %s cannot be served: %s", name, error)

    def _retire(self, engine: Engine) -> None:
        task = asyncio.create_task(_end_when_free(engine))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    def _open(self, folder: Path, *, tries: bool) -> Engine:
        """Open a bundle here; with `tries`, only what could be opened elsewhere."""
        if folder.is_symlink():
            raise BundleError(f"{folder.name}: symbolic links are not followed")
        version = self._trial.check(folder) if tries else None
        bundle = read_bundle(folder)
        if version not in {None, version_of(bundle.manifest)}:
            raise BundleError(f"{folder.name}: it was replaced while it was opened; ask again")
        surroundings = Surroundings(
            settings=self._settings,
            threads=self._threads,
            metrics=self._metrics,
            budgets=self._budgets,
        )
        return open_engine(bundle, surroundings)

    # --- watching the folder --------------------------------------------------------------------

    async def watch(self, interval_s: float) -> None:
        """Follow the folder: new bundles, changed ones and removed ones. Ends when cancelled.

        By looking, since notifications do not come from folders that are mounted over a network.
        """
        known = await asyncio.to_thread(self._stamps)
        while True:
            await asyncio.sleep(interval_s)
            found = await asyncio.to_thread(self._stamps)
            for name in sorted(known.keys() | found.keys()):
                if known.get(name) != found.get(name):
                    # What is refused is told by `_fail`, and tried again when it changes.
                    with suppress(ModelNotFound, BundleUnusable):
                        await self._follow(name, is_there=name in found)
            known = found

    def _follow(self, name: str, *, is_there: bool) -> Coroutine[Any, Any, Change]:
        if is_there:
            return self.reload(name)
        self.failed.pop(name, None)
        return self.unload(name)

    def _stamps(self) -> Mapping[str, Stamp]:
        stamps: dict[str, Stamp] = {}
        for folder in self._folders():
            with suppress(OSError):
                status = (folder / MANIFEST).stat()
                stamps[folder.name] = (status.st_ino, status.st_mtime_ns, status.st_size)
        return stamps


async def _end_when_free(engine: Engine) -> None:
    """Let the requests end that hold an engine, then end it."""
    try:
        while engine.holds:
            await asyncio.sleep(_POLL_S)
    finally:
        await engine.stop(_STOP_TIMEOUT_S)
    # The caches hold what refers to each other, and a model's memory is worth a collection.
    del engine
    await asyncio.to_thread(_return_memory)


def _return_memory() -> None:
    """Give the system back what an engine had."""
    gc.collect()
    return_free_memory()


def version_of(manifest: Manifest) -> str:
    """What tells a version of a bundle from others: the SHA-256 of what its manifest says.

    It knows the checksums of all other files.
    """
    return hashlib.sha256(manifest.model_dump_json().encode()).hexdigest()


def bundle_folders(models_dir: Path) -> list[Path]:
    """The folders of bundles, by name. Raises BundleError when there are none."""
    try:
        entries = sorted(models_dir.iterdir())
    except OSError as error:
        raise BundleError(f"{models_dir}: {error.strerror}") from error
    # Names that start with a dot are the exporter's scratch folders.
    folders = [x for x in entries if not x.name.startswith(".") and not x.is_file()]
    if not folders:
        raise BundleError(f"{models_dir}: there is no bundle in it")
    return folders
