"""The registry of models: load, reload and unload bundles while requests are answered.

A version is opened and verified before it is served. While other models are served, a separate
process opens it first. A request keeps the version that it began with, and a version ends with its
last request.

Where several server processes serve, a change is a decision that all of them carry out: every one
prepares it, and only when each has, they carry it out. `service.processes` is in between.
"""

import asyncio
import gc
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from service.bundle.files import BundleError
from service.bundle.store import read_bundle
from service.decoding.cache_budget import CacheBudgets
from service.errors import BundleUnusable, InvalidRequest, ModelNotFound, QueueFull
from service.observe.metrics import Metrics
from service.observe.request_context import current_request
from service.runtime.allocator import return_free_memory
from service.runtime.cpus import usable_cpus
from service.settings import Settings
from service.tasks.engine import Ability, Engine
from service.tasks.folders import Stamp, bundle_folders, stamps_of, version_of
from service.tasks.kinds import Surroundings, open_engine
from service.tasks.trial import PATIENCE, Trial

Able = TypeVar("Able")

# A step holds the GIL for one or two tenths of its time: more threads would wait for each other.
MAX_DEFAULT_THREADS = 4
_POLL_S = 0.02
# After this, a worker that hangs in a step is left running until the process ends.
_STOP_TIMEOUT_S = 5.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Change:
    """The result of loading or unloading a model."""

    name: str
    is_served: bool
    changed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What becomes of one model, the same in every server process."""

    verb: Literal["serve", "drop", "fail"]  # `fail` lists a cause; what is served goes on
    name: str
    stamp: Stamp | None  # of the folder that was looked at; None: it is gone
    version: str | None = None  # SHA-256 of the manifest to serve
    cause: str = ""  # why it cannot be served


class ModelRegistry:
    """The served models by name. Call its methods in the event loop unless they say otherwise."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        # One key for all models, so that a state of another model is recognized as such.
        self._settings = settings.model_copy(update={"state_key": settings.signing_key()})
        self._metrics = metrics
        self._budgets = CacheBudgets.of(settings)
        self.engines: dict[str, Engine] = {}
        self.failed: dict[str, str] = {}  # bundles that cannot be served, and why
        # Carries a decision out in every server process. Raises BundleError if one of them cannot.
        self.agree: Callable[[Decision], Awaitable[None]] = self._alone
        self._prepared: dict[str, Engine] = {}
        self._stamps: dict[str, Stamp] = {}  # of each folder when it was last dealt with
        self._threads = settings.engine_threads or min(usable_cpus(), MAX_DEFAULT_THREADS)
        self._trial = Trial(settings, self._threads)
        self._changing = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()

    # --- start and end --------------------------------------------------------------------------

    def load_all(self, give_up: Callable[[str], None] | None = None) -> None:
        """Open every bundle of the folder; needs no event loop. Raises BundleError.

        Bundles are opened in this process, unless bad ones are skipped (`on_bad_bundle`). Opening
        cannot be interrupted: if it takes too long, `give_up` is called from another thread with
        the cause, and may end the process.
        """
        skips = self._settings.on_bad_bundle == "skip"
        self._stamps = dict(stamps_of(self._settings.models_dir))
        for folder in bundle_folders(self._settings.models_dir):
            try:
                with self._in_time(folder.name, None if skips else give_up):
                    version = self._tried(folder) if skips else None
                    self.engines[folder.name] = self._open(folder, version)
                self._metrics.model_loads.labels("loaded").inc()
            except BundleError as error:
                if not skips:
                    skip = "UNROLL_ON_BAD_BUNDLE=skip serves the others"
                    raise BundleError(f"{error}; {skip}") from error
                self.failed[folder.name] = str(error)
                self._log_failure(folder.name, error)
        self._trial.rest()
        if not self.engines:
            raise BundleError(f"{self._settings.models_dir}: none of its bundles can be served")

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
            timer.join()

    def start(self, engines: Sequence[Engine] | None = None) -> None:
        """Begin to serve the opened engines, or the given ones."""
        if engines is not None:
            self.engines = {engine.manifest.name: engine for engine in engines}
        for engine in self.engines.values():
            self._show(engine)

    async def stop(self) -> None:
        """End all engines, even if requests still use them."""
        for task in self._retiring:
            task.cancel()
        await asyncio.to_thread(self._trial.close)
        engines = [*self.engines.values()]
        await asyncio.gather(*self._retiring, return_exceptions=True)
        await asyncio.gather(*(engine.stop(_STOP_TIMEOUT_S) for engine in engines))

    # --- use ------------------------------------------------------------------------------------

    def held(self, name: str | None, ability: Ability[Any] | None = None) -> Engine:
        """The engine of a model, kept alive for the current request.

        Without a name, it is the only engine, or the only one with the ability. Raises
        ModelNotFound and InvalidRequest.
        """
        engine = self.engines.get(self._only(ability) if name is None else name)
        if engine is None:
            served = ", ".join(sorted(self.engines)) or "none"
            raise ModelNotFound(f"no such model; the models are {served}")
        current_request().hold(engine)
        return engine

    def with_ability(self, name: str | None, ability: Ability[Able]) -> Able:
        """The ability of that engine. Also raises InvalidRequest if it lacks it."""
        engine = self.held(name, ability)
        found = ability.of(engine)
        if found is None:
            raise InvalidRequest.of_option("model", ability.lacking(engine))
        return found

    def all_with_ability(self, ability: Ability[Able]) -> list[Able]:
        """The ability of every engine that has it, sorted by name."""
        engines = (ability.of(engine) for _, engine in sorted(self.engines.items()))
        return [engine for engine in engines if engine is not None]

    def _only(self, ability: Ability[Any] | None) -> str:
        fitting = [
            name for name, x in self.engines.items() if ability is None or ability in x.abilities
        ]
        # If no engine fits, the only one is chosen, and its error says what it can do.
        fitting = fitting or list(self.engines)
        if len(fitting) != 1:
            served = ", ".join(sorted(fitting)) or "none"
            raise InvalidRequest.of_option("model", f"name one of the served models: {served}")
        return fitting[0]

    def refuse_if_full(self, client: str) -> None:
        """Raise QueueFull if no model has room for any request.

        This is checked before a body is read, so that a flood of requests costs little.
        """
        refusal: QueueFull | None = None
        for engine in self.engines.values():
            refusal = engine.workers.refusal(client)
            if refusal is None:
                return
        if refusal is not None:
            raise refusal

    # --- changes --------------------------------------------------------------------------------

    async def load(self, name: str) -> Change:
        """Serve a bundle of the folder unless it is served already. Raises as `reload` does."""
        async with self._changing:
            if name in self.engines:
                return Change(name, is_served=True, changed=False)
            await self._replace(name)
            return Change(name, is_served=True, changed=True)

    async def reload(self, name: str) -> Change:
        """Serve a bundle as it is on disk now.

        Raises ModelNotFound if there is none, and BundleUnusable if it cannot be served; the
        version served before then stays in service.
        """
        async with self._changing:
            await self._replace(name)
            return Change(name, is_served=True, changed=True)

    async def unload(self, name: str) -> Change:
        """Stop serving a model. Raises ModelNotFound."""
        async with self._changing:
            if name not in self.engines:
                raise ModelNotFound("no model of that name is served")
            await self._drop(name, self._stamps.get(name))
            return Change(name, is_served=False, changed=True)

    async def watch(self, interval_s: float) -> None:
        """Follow the folder until cancelled: load new bundles, reload changed, unload removed ones.

        It polls, because folders mounted over a network send no notifications.
        """
        while True:
            await asyncio.sleep(interval_s)
            found = await asyncio.to_thread(stamps_of, self._settings.models_dir)
            for name in sorted(self._stamps.keys() | found.keys()):
                if self._stamps.get(name) != found.get(name):
                    # The error has been logged; the bundle is tried again when it changes.
                    with suppress(ModelNotFound, BundleUnusable):
                        await self._follow(name, found.get(name))

    async def _follow(self, name: str, stamp: Stamp | None) -> None:
        async with self._changing:
            if stamp is None:
                await self._drop(name, stamp)
            else:
                await self._replace(name)

    async def _drop(self, name: str, stamp: Stamp | None) -> None:
        was_served = name in self.engines
        await self.agree(Decision(verb="drop", name=name, stamp=stamp))
        if was_served:
            self._metrics.model_loads.labels("unloaded").inc()
            logger.info("model %s: unloaded", name)

    async def _replace(self, name: str) -> None:
        # Look the name up in the listing: a path is never made from a client's name.
        stamps = await asyncio.to_thread(stamps_of, self._settings.models_dir)
        folders = {x.name: x for x in await asyncio.to_thread(self._folders)}
        if name not in folders:
            raise ModelNotFound("there is no bundle of that name in the models folder")
        stamp, was_served = stamps.get(name), name in self.engines
        try:
            version = await asyncio.to_thread(self._tried, folders[name])
            await self.agree(Decision(verb="serve", name=name, stamp=stamp, version=version))
        except BundleError as error:
            self._log_failure(name, error)
            await self.agree(Decision(verb="fail", name=name, stamp=stamp, cause=str(error)))
            raise BundleUnusable(str(error)) from error
        self._metrics.model_loads.labels("loaded").inc()
        logger.info("model %s: %s", name, "reloaded" if was_served else "loaded")

    def _folders(self) -> list[Path]:
        try:
            return bundle_folders(self._settings.models_dir)
        except BundleError:
            return []

    def _log_failure(self, name: str, error: BundleError) -> None:
        self._metrics.model_loads.labels("failed").inc()
        logger.error("model %s cannot be served: %s", name, error)

    # --- decisions ------------------------------------------------------------------------------

    async def _alone(self, decision: Decision) -> None:
        await asyncio.to_thread(self.prepare, decision)
        self.carry_out(decision)

    def prepare(self, decision: Decision) -> None:
        """Open what a decision needs, which a trial process has opened before; changes nothing yet.

        Raises BundleError. Slow, and needs no event loop.
        """
        if decision.verb == "serve":
            folder = self._settings.models_dir / decision.name
            self._prepared[decision.name] = self._open(folder, decision.version)

    def forget(self, decision: Decision) -> None:
        """Let go of what was prepared: another process could not."""
        self._prepared.pop(decision.name, None)

    def carry_out(self, decision: Decision) -> None:
        """Carry out a decision that has been prepared."""
        before = self.adopt(decision)
        if decision.verb == "serve":
            self._show(self.engines[decision.name])
        if decision.verb == "drop":
            self._metrics.forget_model(decision.name)
        if before is not None:
            self._retire(before)

    def adopt(self, decision: Decision) -> Engine | None:
        """Note a decision in a process that serves nothing itself; the engine that it ends."""
        name = decision.name
        if decision.stamp is None:
            self._stamps.pop(name, None)
        else:
            self._stamps[name] = decision.stamp
        if decision.verb == "fail":
            self.failed[name] = decision.cause
            return None
        self.failed.pop(name, None)
        before = self.engines.pop(name, None)
        if decision.verb == "serve":
            self.engines[name] = self._prepared.pop(name)
        return before

    def _show(self, engine: Engine) -> None:
        engine.start()
        manifest = engine.manifest
        version = version_of(manifest)[:12]
        self._metrics.show_model(manifest.name, engine.precision, manifest.task, version)

    def _retire(self, engine: Engine) -> None:
        task = asyncio.create_task(_end_when_free(engine))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    def _tried(self, folder: Path) -> str:
        """Have a trial process open a bundle first; its version. Raises BundleError."""
        _refuse_link(folder)
        return self._trial.check(folder)

    def _open(self, folder: Path, version: str | None) -> Engine:
        """Open a bundle in this process, in this version if one is given. Raises BundleError."""
        _refuse_link(folder)
        bundle = read_bundle(folder)
        if version not in {None, version_of(bundle.manifest)}:
            raise BundleError(f"{folder.name}: it was replaced while it was opened; try again")
        surroundings = Surroundings(
            settings=self._settings,
            threads=self._threads,
            metrics=self._metrics,
            budgets=self._budgets,
        )
        return open_engine(bundle, surroundings)


def _refuse_link(folder: Path) -> None:
    if folder.is_symlink():
        raise BundleError(f"{folder.name}: symbolic links are not followed")


async def _end_when_free(engine: Engine) -> None:
    """Wait for the requests that use an engine, then end it."""
    try:
        while engine.holds:
            await asyncio.sleep(_POLL_S)
    finally:
        await engine.stop(_STOP_TIMEOUT_S)
    # Its caches contain reference cycles, and a model's memory is worth a garbage collection.
    del engine
    await asyncio.to_thread(return_memory)


def return_memory() -> None:
    """Return the memory of an ended engine to the system."""
    gc.collect()
    return_free_memory()
