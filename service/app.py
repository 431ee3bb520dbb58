"""The application: bundles to engines, errors to problem documents, request ids."""

import asyncio
import logging
import re
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import libretranslate, open_inference, openai_routes, token_routes
from service.answers import problem_document
from service.bundle import (
    Bundle,
    BundleError,
    EncoderDecoderBundle,
    Precision,
    read_any_bundle,
)
from service.cpus import usable_cpus
from service.documentation import document
from service.engine import Engine
from service.errors import FieldError, InvalidRequest, ServiceError
from service.graphs import GoldenMismatch
from service.page_routes import read_page
from service.page_routes import router as page_router
from service.pair_session import OnnxPairSession
from service.routes import router
from service.schemas import AnyEngine, Problem
from service.session import OnnxSession
from service.settings import Settings
from service.translator import Translator

AnyBundle = TypeVar("AnyBundle", Bundle, EncoderDecoderBundle)
Opened = TypeVar("Opened")

# Python's lock is held for a tenth of a step or two: more threads than this wait for each other.
MAX_DEFAULT_THREADS = 4

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

logger = logging.getLogger(__name__)


def create_app(settings: Settings, engines: Sequence[AnyEngine] | None = None) -> FastAPI:
    """A plain ASGI application. `engines` are taken instead of the settings' models folder.

    Everything is started and ended in the lifespan. Raises BundleError there when a bundle cannot
    be served.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        serving = engines
        if serving is None:
            serving = await asyncio.to_thread(load_engines, settings)
        for engine in serving:
            engine.start()
        app.state.engines = {engine.manifest.name: engine for engine in serving}
        logger.info("serving %s", ", ".join(sorted(app.state.engines)))
        try:
            yield
        finally:
            await asyncio.gather(*(engine.stop() for engine in serving))

    app = FastAPI(
        title="Unroll",
        summary="Small recurrent sequence models, served exactly.",
        version="0.1.0",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own pages load their scripts from elsewhere
        redoc_url=None,
    )
    app.state.settings = settings
    app.state.engines = {}
    app.state.page = read_page()
    adapters = (token_routes, openai_routes, open_inference, libretranslate)
    for each in (router, page_router, *(adapter.router for adapter in adapters)):
        app.include_router(each)
    app.openapi = partial(document, app)  # type: ignore[method-assign]
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(RequestValidationError, _parameter_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _bug)
    app.add_middleware(RequestIds)
    return app


def load_engines(settings: Settings) -> list[AnyEngine]:
    """An engine for every bundle in the models folder. Raises BundleError for the first bad one."""
    # One for all models, so that a state of another one is known as such.
    settings = settings.model_copy(update={"state_key": settings.signing_key()})
    share = max(1, usable_cpus() // settings.workers)
    threads = settings.engine_threads or min(share, MAX_DEFAULT_THREADS)
    folders = bundle_folders(settings.models_dir)
    return [open_engine(read_any_bundle(folder), settings, threads) for folder in folders]


def open_engine(
    bundle: Bundle | EncoderDecoderBundle, settings: Settings, threads: int
) -> AnyEngine:
    """The engine of a bundle, with so many threads. Raises BundleError."""
    if isinstance(bundle, Bundle):
        session = open_session(bundle, settings, OnnxSession)
        return Engine(bundle, session, settings, precision=session.precision, threads=threads)
    pair_session = open_session(bundle, settings, OnnxPairSession)
    precision = pair_session.precision
    return Translator(bundle, pair_session, settings, precision=precision, threads=threads)


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


def bundle_folders(models_dir: Path) -> list[Path]:
    """The folders of bundles, by name. Raises BundleError when there are none."""
    try:
        entries = sorted(models_dir.iterdir())
    except OSError as error:
        raise BundleError(f"{models_dir}: {error.strerror}") from error
    # Names that start with a dot are the exporter's scratch folders.
    folders = [x for x in entries if not x.name.startswith(".") and not x.is_file()]
    for folder in folders:
        if folder.is_symlink():
            raise BundleError(f"{folder.name}: symbolic links are not followed")
    if not folders:
        raise BundleError(f"{models_dir}: there is no bundle in it")
    return folders


class RequestIds:
    """Gives every request an id: the client's `X-Request-Id` where it is harmless, else its own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and put the id into the answer's headers (ASGI 3)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope["unroll.request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"].append((b"x-request-id", request_id.encode("ascii")))
            await send(message)

        await self._app(scope, receive, send_with_id)


def _problem(request: Request, error: ServiceError | HTTPException) -> Response:
    if isinstance(error, ServiceError):
        problem, headers = problem_document(request, error), dict(error.headers)
    else:
        problem = Problem(
            type="http-error",
            title="HTTP error",
            status=error.status_code,
            detail=_HTTP_DETAILS.get(error.status_code, "the request cannot be answered"),
            request_id=request.scope.get("unroll.request_id", ""),
            errors=[],
        )
        headers = dict(error.headers or {})
    for prefix, (form, statuses) in _ERROR_FORMS.items():
        if request.url.path.startswith(prefix):
            content = form(problem).model_dump_json()
            status = statuses.get(problem.status, problem.status)
            return Response(content, status, headers, "application/json")
    content = problem.model_dump_json()
    return Response(content, problem.status, headers, "application/problem+json")


# Paths whose clients expect errors in another form, and some with other statuses.
_ERROR_FORMS: dict[str, tuple[Callable[[Problem], BaseModel], dict[int, int]]] = {
    "/v1/": (openai_routes.openai_error, {}),
    "/v2": (open_inference.open_inference_error, {}),
    "/libretranslate/": (libretranslate.libretranslate_error, libretranslate.STATUS),
}


_HTTP_DETAILS = {404: "there is no such path", 405: "the path does not take this method"}


async def _service_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, ServiceError):
        raise TypeError(type(error))
    return _problem(request, error)


async def _parameter_error(request: Request, error: Exception) -> Response:
    """A parameter of a path or a query that FastAPI refuses, whose own answer tells its value."""
    if not isinstance(error, RequestValidationError):
        raise TypeError(type(error))
    errors = [FieldError(f"/{mistake['loc'][-1]}", mistake["msg"]) for mistake in error.errors()]
    detail = "; ".join(f"{x.pointer}: {x.detail}" for x in errors)
    return _problem(request, InvalidRequest(detail, errors=errors))


async def _http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise TypeError(type(error))
    return _problem(request, error)


async def _bug(request: Request, error: Exception) -> Response:
    """A defect of ours: logged, and told without its text."""
    logger.error("request %s", request.scope.get("unroll.request_id"), exc_info=error)
    # This answer does not pass through RequestIds, which lies inside of it.
    headers = {"X-Request-Id": request.scope.get("unroll.request_id", "")}
    return _problem(request, HTTPException(500, headers=headers))
