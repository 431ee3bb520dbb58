"""The kinds of model: how the bundle of each is opened, and which engine serves it.

`KINDS` is the only place in the service that names the engines; everyone else asks an engine for
an ability (`engine.py`). To add a kind:

    bundle/<kind>.py       its manifest and how it is read; an entry in bundle/store.py
    runtime/<kind>.py      its session: the graphs behind a protocol, golden vectors checked
    decoding/              only what it decodes in a way of its own
    scheduling/<kind>.py   its runner: what one iteration does with the admitted work
    tasks/<kind>.py        its engine, with the abilities that it has
    tasks/kinds.py         an entry in `KINDS`
    tasks/cards.py         what is known of it before it is open
    endpoints/model_details.py   what GET /models/{name} shows of its manifest

A task that no kind has yet also needs an ability in tasks/engine.py, and its path in endpoints/.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from service.bundle.encoder_decoder import EncoderDecoderBundle
from service.bundle.labeler import LabelerBundle
from service.bundle.language_model import LanguageModelBundle
from service.bundle.manifest import Precision
from service.bundle.store import Bundle, Manifest
from service.decoding.cache_budget import CacheBudgets
from service.observe.metrics import Metrics
from service.runtime.adapting import language_model_sessions
from service.runtime.encoder_decoder import OnnxEncoderDecoderSession
from service.runtime.golden import GoldenMismatch
from service.runtime.labeler import OnnxLabelerSession
from service.settings import Settings
from service.tasks.cloze_engine import ClozeEngine
from service.tasks.encoder_decoder import EncoderDecoderEngine
from service.tasks.engine import Engine
from service.tasks.labeler import LabelerEngine
from service.tasks.language_model import LanguageModelEngine

AnyBundle = TypeVar("AnyBundle", LanguageModelBundle, EncoderDecoderBundle, LabelerBundle)
Opened = TypeVar("Opened")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Surroundings:
    """What an engine needs besides its bundle."""

    settings: Settings
    threads: int
    metrics: Metrics | None = None
    budgets: CacheBudgets | None = None  # None: the engine does not share its caches' budget


def open_engine(bundle: Bundle, surroundings: Surroundings) -> Engine:
    """The engine of a bundle. Raises BundleError."""
    return KINDS[bundle.manifest.task](bundle, surroundings)


def wanted_precision(manifest: Manifest, settings: Settings) -> Precision:
    """The precision that a model is to be served in."""
    return manifest.precision if settings.precision == "auto" else settings.precision


def open_session(
    bundle: AnyBundle, settings: Settings, kind: Callable[[AnyBundle, Precision], Opened]
) -> Opened:
    """The bundle in the precision of the settings, or in fp32 if int8 fails on this machine.

    Raises BundleError if the bundle lacks the precision, or if fp32 fails, too.
    """
    wanted = wanted_precision(bundle.manifest, settings)
    try:
        return kind(bundle, wanted)
    except GoldenMismatch as mismatch:
        if wanted == "fp32":
            raise
        logger.error("%s; it is served in fp32 instead", mismatch)  # noqa: TRY400 (no bug, no traceback)
        return kind(bundle, "fp32")


def _language_model(bundle: LanguageModelBundle, given: Surroundings) -> Engine:
    session, adapting = open_session(bundle, given.settings, language_model_sessions)
    return LanguageModelEngine(
        bundle,
        session,
        given.settings,
        precision=session.precision,
        adapting=adapting,
        threads=given.threads,
        metrics=given.metrics,
        budgets=given.budgets,
    )


def _encoder_decoder(bundle: EncoderDecoderBundle, given: Surroundings) -> Engine:
    session = open_session(bundle, given.settings, OnnxEncoderDecoderSession)
    if bundle.manifest.infill is not None:
        return ClozeEngine(
            bundle,
            bundle.manifest.infill,
            session,
            given.settings,
            precision=session.precision,
            threads=given.threads,
            metrics=given.metrics,
            budgets=given.budgets,
        )
    return EncoderDecoderEngine(
        bundle,
        session,
        given.settings,
        precision=session.precision,
        threads=given.threads,
        metrics=given.metrics,
        budgets=given.budgets,
    )


def _labeler(bundle: LabelerBundle, given: Surroundings) -> Engine:
    session = open_session(bundle, given.settings, OnnxLabelerSession)
    return LabelerEngine(
        bundle,
        session,
        given.settings,
        precision=session.precision,
        threads=given.threads,
        metrics=given.metrics,
    )


KINDS: Mapping[str, Callable[[Any, Surroundings], Engine]] = {
    "language_model": _language_model,
    "encoder_decoder": _encoder_decoder,
    "labeler": _labeler,
}
