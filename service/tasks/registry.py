"""The registry of models: load, reload and unload bundles while requests are answered.

A version is opened and verified before it is served. While other models are served, a separate
process opens it first. A request keeps the version that it began with, and a version ends with its
last request. With `models_bytes`, a server knows all models and opens them at their first use.

Where several server processes serve, a change is a decision that all of them carry out: every one
prepares it, and only when each has, they carry it out. `service.processes` is in between.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from service.bundle.files import BundleError
from service.errors import BundleUnusable, InvalidRequest, ModelNotFound, QueueFull
from service.observe.metrics import Metrics
from service.observe.request_context import current_request
from service.settings import Settings
from service.tasks.cards import Card, Catalogue
from service.tasks.decisions import Change, Decision
from service.tasks.engine import Ability, Engine
from service.tasks.first_use import FirstUse
from service.tasks.folders import Stamp, bundle_folders, stamp_of, stamps_of, version_of
from service.tasks.opening import STOP_TIMEOUT_S, Ending, Opener

Able = TypeVar("Able")

# From this number of bundles on, the log recommends `models_bytes`.
_MANY = 50

logger = logging.getLogger(__name__)


class ModelRegistry:
    """The served models by name. Call its methods in the event loop unless they say otherwise."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._opener = Opener(settings, metrics)
        self.budgets = self._opener.budgets  # of the caches of all models
        self.catalogue = Catalogue()
        self.engines: dict[str, Engine] = {}  # those that are open
        # Carries a decision out in every server process. Raises BundleError if one of them cannot.
        self.agree: Callable[[Decision], Awaitable[None]] = self._alone
        self._prepared: dict[str, tuple[Card, Engine | None]] = {}
        self._changing = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()
        self._ending = Ending()
        self._first_use: FirstUse | None = None
        if settings.models_bytes is not None:
            self._first_use = FirstUse(
                settings,
                settings.models_bytes,
                catalogue=self.catalogue,
                engines=self.engines,
                opener=self._opener,
                metrics=metrics,
                show=self._show,
            )

    @property
    def cards(self) -> dict[str, Card]:
        """Every served model, open or not, by name."""
        return self.catalogue.cards

    @property
    def failed(self) -> dict[str, str]:
        """Bundles that cannot be served, and why."""
        return self.catalogue.failed

    # --- start and end --------------------------------------------------------------------------

    def load_all(self, give_up: Callable[[str], None] | None = None) -> None:
        """Open every bundle of the folder; needs no event loop. Raises BundleError.

        With `models_bytes`, only the manifests are read. Bundles are opened in this process, unless
        bad ones are skipped (`on_bad_bundle`). Opening cannot be interrupted: if it takes too long,
        `give_up` is called from another thread with the cause, and may end the process.
        """
        skips = self._settings.on_bad_bundle == "skip"
        folders = bundle_folders(self._settings.models_dir)
        self.catalogue.stamps |= stamps_of(self._settings.models_dir)
        if len(folders) >= _MANY and self._first_use is None:
            logger.info("%d bundles; UNROLL_MODELS_BYTES opens each at its first use", len(folders))
        for folder in folders:
            try:
                with self._opener.in_time(folder.name, None if skips else give_up):
                    self._load_first(folder, is_tried=skips)
            except BundleError as error:
                if not skips:
                    skip = "UNROLL_ON_BAD_BUNDLE=skip serves the others"
                    raise BundleError(f"{error}; {skip}") from error
                self.failed[folder.name] = str(error)
                self._log_failure(folder.name, error)
        self._opener.trial.rest()
        if not self.cards:
            raise BundleError(f"{self._settings.models_dir}: none of its bundles can be served")

    def _load_first(self, folder: Path, *, is_tried: bool) -> None:
        if self._first_use is not None:
            self.cards[folder.name] = self._opener.card(folder)
            self._metrics.label_of(folder.name)
            return
        version = self._opener.trial.check(folder) if is_tried else None
        engine = self._opener.open(folder, version)
        self.engines[folder.name], self.cards[folder.name] = engine, Card.of_engine(engine)
        self._metrics.model_loads.labels("loaded").inc()

    async def start(self, engines: Sequence[Engine] | None = None) -> None:
        """Begin to serve the opened engines, or the given ones."""
        if engines is not None:
            self.engines = {engine.manifest.name: engine for engine in engines}
            self.catalogue.cards = {x.manifest.name: Card.of_engine(x) for x in engines}
        for engine in self.engines.values():
            self._show(engine)
        if self._first_use is not None:
            await self._first_use.start()

    async def stop(self) -> None:
        """End all engines, even if requests still use them."""
        for task in self._retiring:
            task.cancel()
        await asyncio.to_thread(self._opener.trial.close)
        if self._first_use is not None:
            await self._first_use.stop()
        engines = [*self.engines.values()]
        await asyncio.gather(*self._retiring, return_exceptions=True)
        await asyncio.gather(*(engine.stop(STOP_TIMEOUT_S) for engine in engines))

    # --- use ------------------------------------------------------------------------------------

    async def held(self, name: str | None, ability: Ability[Any] | None = None) -> Engine:
        """The engine of a model, kept alive for the current request; it may have to be opened.

        Without a name, it is the only model, or the only one with the ability. Raises
        ModelNotFound, InvalidRequest and what opening it raises.
        """
        chosen = self._only(ability) if name is None else name
        if self._first_use is None:
            engine = self.engines.get(chosen)
        else:
            engine = self._first_use.found(chosen)
            if engine is None and chosen in self.cards:
                self.refuse_unable(chosen, ability)
                engine = await self._first_use.opened(chosen, self._follow)
        if engine is None:
            served = self.catalogue.shown(self.cards)
            raise ModelNotFound(f"no such model; the models are {served}")
        current_request().hold(engine)
        return engine

    async def with_ability(self, name: str | None, ability: Ability[Able]) -> Able:
        """The ability of that engine. Also raises InvalidRequest if it lacks it."""
        engine = await self.held(name, ability)
        found = ability.of(engine)
        if found is None:
            raise InvalidRequest.of_option("model", ability.lacking(engine.abilities))
        return found

    def refuse_unable(self, name: str, ability: Ability[Any] | None) -> None:
        """Raise InvalidRequest if a model lacks the ability, which needs no open model."""
        abilities = self.cards[name].abilities
        if ability is not None and ability not in abilities:
            raise InvalidRequest.of_option("model", ability.lacking(abilities))

    def card(self, name: str) -> Card:
        """What is known of a model. Raises ModelNotFound."""
        card = self.cards.get(name)
        if card is None:
            served = self.catalogue.shown(self.cards)
            raise ModelNotFound(f"no such model; the models are {served}")
        return card

    def cards_with(self, ability: Ability[Any] | None = None) -> list[Card]:
        """Every model, or every one that has the ability, sorted by name."""
        cards = (card for _, card in sorted(self.cards.items()))
        return [card for card in cards if ability is None or ability in card.abilities]

    @property
    def is_alive(self) -> bool:
        """Whether the workers of every open model run."""
        return all(engine.workers.alive for engine in self.engines.values())

    def is_ready(self, name: str) -> bool:
        """Whether a model can be asked; one that is not open, unless it has failed."""
        engine = self.engines.get(name)
        return name not in self.failed if engine is None else engine.workers.alive

    @property
    def open_bytes(self) -> int:
        """An estimate of the memory that open models take."""
        return sum(self.cards[name].open_bytes for name in self.engines if name in self.cards)

    def _only(self, ability: Ability[Any] | None) -> str:
        # If no model fits, the only one is chosen, and its error says what it can do.
        fitting = [
            name for name, x in self.cards.items() if ability is None or ability in x.abilities
        ] or list(self.cards)
        if len(fitting) != 1:
            served = self.catalogue.shown(fitting)
            raise InvalidRequest.of_option("model", f"name one of the served models: {served}")
        return fitting[0]

    def refuse_if_full(self, client: str) -> None:
        """Raise QueueFull if no model has room for any request.

        This is checked before a body is read, so that a flood of requests costs little.
        """
        if len(self.engines) < len(self.cards):
            return  # a model that is not open has room
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
            is_whole = name in self.engines or name not in self.failed
            if name in self.cards and is_whole:
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
            if name not in self.cards:
                raise ModelNotFound("no model of that name is served")
            await self._drop(name, self.catalogue.stamps.get(name))
            return Change(name, is_served=False, changed=True)

    async def watch(self, interval_s: float) -> None:
        """Follow the folder until cancelled: load new bundles, reload changed, unload removed ones.

        It polls, because folders mounted over a network send no notifications.
        """
        while True:
            await asyncio.sleep(interval_s)
            found = await asyncio.to_thread(stamps_of, self._settings.models_dir)
            stamps = self.catalogue.stamps
            for name in sorted(stamps.keys() | found.keys()):
                if stamps.get(name) != found.get(name):
                    # The error has been logged; the bundle is tried again when it changes.
                    with suppress(ModelNotFound, BundleUnusable):
                        await self._follow(name, found.get(name))

    async def _follow(self, name: str, stamp: Stamp | None) -> None:
        """Serve a folder as it was seen, unless that has been dealt with meanwhile."""
        async with self._changing:
            if self.catalogue.stamps.get(name) == stamp:
                return
            if stamp is None:
                await self._drop(name, stamp)
            else:
                await self._replace(name)

    async def _drop(self, name: str, stamp: Stamp | None) -> None:
        was_served = name in self.cards
        await self.agree(Decision(verb="drop", name=name, stamp=stamp))
        if was_served:
            self._metrics.model_loads.labels("unloaded").inc()
            logger.info("model %s: unloaded", name)

    async def _replace(self, name: str) -> None:
        # Look the name up in the listing: a path is never made from a client's name.
        folders = {x.name: x for x in await asyncio.to_thread(self._folders)}
        if name not in folders:
            raise ModelNotFound("there is no bundle of that name in the models folder")
        stamp = await asyncio.to_thread(stamp_of, folders[name])
        was_served = name in self.cards
        try:
            version = await asyncio.to_thread(self._opener.trial.check, folders[name])
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
        """Read what a decision needs, which a trial process has opened before; changes nothing yet.

        Raises BundleError. Slow, and needs no event loop.
        """
        if decision.verb != "serve":
            return
        folder = self._settings.models_dir / decision.name
        if self._first_use is not None:
            self._prepared[decision.name] = self._opener.card(folder, decision.version), None
            return
        engine = self._opener.open(folder, decision.version)
        self._prepared[decision.name] = Card.of_engine(engine), engine

    def forget(self, decision: Decision) -> None:
        """Let go of what was prepared: another process could not."""
        self._prepared.pop(decision.name, None)

    def carry_out(self, decision: Decision) -> None:
        """Carry out a decision that has been prepared."""
        if self._first_use is not None and decision.verb != "fail":
            self._first_use.let_go(decision.name)
        before = self.adopt(decision)
        if decision.verb == "serve" and decision.name in self.engines:
            self._show(self.engines[decision.name])
        if decision.verb == "drop":
            self._metrics.forget_model(decision.name)
        if before is not None:
            self._retire(before)

    def adopt(self, decision: Decision) -> Engine | None:
        """Note a decision in a process that serves nothing itself; the engine that it ends."""
        name, catalogue = decision.name, self.catalogue
        if decision.stamp is None:
            catalogue.stamps.pop(name, None)
        else:
            catalogue.stamps[name] = decision.stamp
        if decision.verb == "fail":
            catalogue.failed[name] = decision.cause
            return None
        catalogue.failed.pop(name, None)
        catalogue.tried.pop(name, None)
        before = self.engines.pop(name, None)
        catalogue.cards.pop(name, None)
        if decision.verb == "serve":
            catalogue.cards[name], engine = self._prepared.pop(name)
            self._metrics.label_of(name)  # in the same order in all processes
            if engine is not None:
                self.engines[name] = engine
            if decision.stamp is not None and decision.version is not None:
                catalogue.tried[name] = decision.stamp, decision.version
        return before

    def _show(self, engine: Engine) -> None:
        engine.start()
        self._metrics.show_model(
            engine.manifest.name,
            engine.precision,
            engine.manifest.task,
            version_of(engine.manifest)[:12],
        )

    def _retire(self, engine: Engine) -> None:
        task = asyncio.create_task(self._ending.when_free(engine))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
