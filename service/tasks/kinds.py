"""The kinds of model: how the bundle of each is opened, and which engine serves it.

This is the service's one table of kinds. A kind of model more is a file in every room below this
one, named after the kind (`bundle/`, with an entry in `store`, `runtime/`, `decoding/` where it
decodes in a way of its own, `scheduling/` and `tasks/`), and an entry here. Where it can do what no
other kind does, `engine` has an ability more, and `endpoints/` a file that asks for that ability.
What `GET /models/{name}` shows of it is a wire model, `endpoints/model_details`.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from service.bundle.encoder_decoder import EncoderDecoderBundle
from service.bundle.language_model import LanguageModelBundle
from service.bundle.manifest import Precision
from service.bundle.store import Bundle
from service.decoding.cache_budget import CacheBudgets
from service.observe.metrics import Metrics
from service.runtime.encoder_decoder import OnnxEncoderDecoderSession
from service.runtime.golden import GoldenMismatch
from service.runtime.language_model import OnnxLanguageModelSession
from service.settings import Settings
from service.tasks.encoder_decoder import EncoderDecoderEngine
from service.tasks.engine import Engine
from service.tasks.language_model import LanguageModelEngine

AnyBundle = TypeVar("AnyBundle", LanguageModelBundle, EncoderDecoderBundle)
Opened = TypeVar("Opened")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Surroundings:
    """What an engine is given besides its bundle."""

    settings: Settings
    threads: int
    metrics: Metrics | None = None
    budgets: CacheBudgets | None = None  # None: its caches share theirs with nobody


def open_engine(bundle: Bundle, surroundings: Surroundings) -> Engine:
    """The engine of a bundle. Raises BundleError."""
    return _KINDS[bundle.manifest.task](bundle, surroundings)


def open_session(
    bundle: AnyBundle, settings: Settings, kind: Callable[[AnyBundle, Precision], Opened]
) -> Opened:
    """The bundle in the precision of the settings, or in fp32 where this machine fails its int8.

    Raises BundleError where there is no such precision, or fp32 fails, too.
    """
    wanted = bundle.manifest.precision if settings.precision == "auto" else settings.precision
    try:
        return kind(bundle, wanted)
    except GoldenMismatch as mismatch:
        if wanted == "fp32":
            raise
        logger.error("%s; it is served in fp32 instead", mismatch)  # noqa: TRY400 (told, not a bug)
        return kind(bundle, "fp32")


def _language_model(bundle: LanguageModelBundle, given: Surroundings) -> Engine:
    session = open_session(bundle, given.settings, OnnxLanguageModelSession)
    return LanguageModelEngine(
        bundle,
        session,
        given.settings,
        precision=session.precision,
        threads=given.threads,
        metrics=given.metrics,
        budgets=given.budgets,
    )


def _encoder_decoder(bundle: EncoderDecoderBundle, given: Surroundings) -> Engine:
    session = open_session(bundle, given.settings, OnnxEncoderDecoderSession)
    return EncoderDecoderEngine(
        bundle,
        session,
        given.settings,
        precision=session.precision,
        threads=given.threads,
        metrics=given.metrics,
    )


_KINDS: Mapping[str, Callable[[Any, Surroundings], Engine]] = {
    "language_model": _language_model,
    "encoder_decoder": _encoder_decoder,
}
