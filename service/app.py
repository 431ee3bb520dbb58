"""The FastAPI application: its state, its startup and shutdown, and its error handlers."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from service.endpoints import (
    classify,
    generate,
    infill,
    libretranslate,
    models,
    open_inference,
    score,
    tag,
    translate,
)
from service.endpoints import openai as openai_routes
from service.endpoints import tokens as token_routes
from service.endpoints.libretranslate_wire import libretranslate_error
from service.endpoints.open_inference_wire import open_inference_error
from service.endpoints.openai_errors import openai_error
from service.endpoints.operations import router as operations_router
from service.endpoints.operations import show_gauges
from service.endpoints.page import read_page
from service.endpoints.page import router as page_router
from service.errors import InvalidRequest, OptionError, ServiceError
from service.http.api_keys import read_api_keys
from service.http.direct import Direct, direct_routes
from service.http.gateway import Doorkeeping, Gateway
from service.http.nearest_names import path_hint
from service.http.openapi import document
from service.http.option_names import pointer_of
from service.http.places import Places
from service.http.problems import problem_document
from service.http.turns import Turns
from service.http.unsent import Unsent
from service.http.wire import Problem
from service.observe.byte_budget import ByteBudget
from service.observe.lifecycle import Lifecycle
from service.observe.metrics import Metrics
from service.observe.trace_context import LoggingTracer, Tracer
from service.settings import Settings, SettingsError
from service.tasks.engine import Engine
from service.tasks.registry import ModelRegistry
from service.tasks.watchdog import watch_engines

_GAUGES_S = 1.0

logger = logging.getLogger(__name__)


def create_app(settings: Settings, engines: Sequence[Engine] | None = None) -> FastAPI:
    """A plain ASGI application. `engines` replace the models of the settings' folder.

    Everything starts and ends in the lifespan, which serves the models that the registry has by
    then. Raises ApiKeysError and SettingsError; the lifespan raises BundleError if a bundle cannot
    be served.
    """
    metrics = Metrics()
    app = _Application(
        title="Unroll",
        summary="Small recurrent sequence models, served exactly.",
        version="0.1.0",
        lifespan=partial(_lifespan, engines=engines),
        docs_url=None,  # FastAPI's own pages load scripts from other servers
        redoc_url=None,
        redirect_slashes=False,  # the gateway removes them
    )
    app.state.settings = settings
    app.state.metrics = metrics
    app.state.registry = ModelRegistry(settings, metrics)
    app.state.lifecycle = Lifecycle()
    app.state.api_keys = (
        None if settings.api_keys_file is None else read_api_keys(settings.api_keys_file)
    )
    app.state.tracer = _tracer(settings)
    app.state.bodies = ByteBudget(settings.max_bodies_bytes)
    app.state.unsent = Unsent(settings.max_unsent_bytes)
    app.state.turns = Turns()
    app.state.places = Places(settings.max_connections, settings.stream_yield_s)
    app.state.page = read_page()
    app.openapi = partial(document, app)  # type: ignore[method-assign]
    _add_routes(app)
    _add_error_handlers(app)
    app.front = _front(app, settings)
    return app


class _Application(FastAPI):
    """FastAPI, with the gateway in front of everything that it does with a request."""

    front: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or run the lifespan (ASGI 3)."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        scope["app"] = self
        await self.front(scope, receive, send)

    async def behind(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as FastAPI does."""
        await super().__call__(scope, receive, send)


@asynccontextmanager
async def _lifespan(app: FastAPI, *, engines: Sequence[Engine] | None) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    registry: ModelRegistry = app.state.registry
    if engines is None and not registry.cards:
        await asyncio.to_thread(registry.load_all)
    await registry.start(engines)
    app.state.tracer.start()
    logger.info("serving %s", registry.catalogue.shown(registry.cards))
    work = [watch_engines(registry, app.state.lifecycle, settings.watchdog_s)]
    if app.state.metrics.is_shared:
        # Each process may be asked for the metrics of all processes.
        work.append(_show_gauges(registry, app.state.metrics, app.state.lifecycle))
    if settings.watch_models_s is not None:
        work.append(registry.watch(settings.watch_models_s))
    tasks = [asyncio.create_task(each) for each in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await registry.stop()
        await asyncio.to_thread(app.state.tracer.close)


def _add_routes(app: FastAPI) -> None:
    adapters = (token_routes, openai_routes, open_inference, libretranslate)
    native = (generate, translate, score, infill, classify, tag, models)
    routers = (
        *(x.router for x in native),
        operations_router,
        page_router,
        *(x.router for x in adapters),
    )
    for each in routers:
        app.include_router(each)
    paths = [route.path for each in routers for route in each.routes if isinstance(route, Route)]
    app.state.paths = [path for path in paths if "{" not in path]
    app.state.direct = direct_routes(routers)


def _add_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(RequestValidationError, _parameter_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _bug)


def _front(app: _Application, settings: Settings) -> ASGIApp:
    """The gateway, with CORS outside it if origins are configured, and the routes behind it."""
    direct = Direct(app.behind, app.state.direct, _problem, _bug)
    gateway = Gateway(direct, doorkeeping=Doorkeeping.of(app.state), render=_problem)
    if not settings.origins:
        return gateway
    # Outermost, because a browser's preflight request has no API key. A configured origin may
    # send any header: OpenAI's client has a dozen of its own (x-stainless-…), and none of them
    # is a credential that a browser would add by itself.
    return CORSMiddleware(
        gateway,
        allow_origins=list(settings.origins),
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        allow_private_network=True,
        expose_headers=["X-Request-Id", "Retry-After", "Server-Timing"],
    )


def _tracer(settings: Settings) -> Tracer:
    if settings.otlp_endpoint is None:
        return LoggingTracer()
    try:
        from service.observe.telemetry import OtlpTracer  # noqa: PLC0415 (an extra that few need)
    except ImportError as error:
        raise SettingsError(
            "UNROLL_OTLP_ENDPOINT needs OpenTelemetry; in Unroll's own folder, run "
            "pip install '.[telemetry]'"
        ) from error
    return OtlpTracer(settings.otlp_endpoint)


async def _show_gauges(registry: ModelRegistry, metrics: Metrics, lifecycle: Lifecycle) -> None:
    """Update the gauges at intervals, until cancelled."""
    while True:
        show_gauges(registry, metrics, lifecycle)
        await asyncio.sleep(_GAUGES_S)


def _problem(request: Request, error: ServiceError | HTTPException) -> Response:
    if isinstance(error, ServiceError):
        problem, headers = problem_document(request, error), dict(error.headers)
    else:
        problem = Problem(
            type="http-error",
            title="HTTP error",
            status=error.status_code,
            detail=_detail_of(request, error),
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
    "/v1/": (openai_error, {}),
    # For clients whose base URL lacks /v1.
    "/chat/": (openai_error, {}),
    "/completions": (openai_error, {}),
    "/embeddings": (openai_error, {}),
    "/v2": (open_inference_error, {}),
    "/libretranslate/": (libretranslate_error, libretranslate.STATUS),
}


_NO_PATH = "there is no such path"
_HTTP_DETAILS = {404: _NO_PATH, 405: "the path does not take this method"}


def _detail_of(request: Request, error: HTTPException) -> str:
    """The detail of an error of the framework; for an unknown path with a hint where to go."""
    detail = _HTTP_DETAILS.get(error.status_code, "the request cannot be answered")
    if detail is not _NO_PATH:
        return detail
    return f"{detail}; {path_hint(request.scope['path'], request.app.state.paths)}"


async def _service_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, ServiceError):
        raise TypeError(type(error))
    return _problem(request, error)


async def _parameter_error(request: Request, error: Exception) -> Response:
    """Answer a bad path or query parameter; FastAPI's own answer would echo its value."""
    if not isinstance(error, RequestValidationError):
        raise TypeError(type(error))
    errors = [OptionError(str(mistake["loc"][-1]), mistake["msg"]) for mistake in error.errors()]
    detail = "; ".join(f"{pointer_of(x)}: {x.detail}" for x in errors)
    return _problem(request, InvalidRequest(detail, errors=errors))


async def _http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise TypeError(type(error))
    is_refused = error.status_code == HTTPStatus.METHOD_NOT_ALLOWED
    allowed = _allowed_methods(request) if is_refused or request.method == "OPTIONS" else ""
    if allowed and request.method == "OPTIONS":
        return Response(status_code=204, headers={"Allow": allowed})
    if is_refused:
        error = HTTPException(error.status_code, headers={"Allow": allowed})
    return _problem(request, error)


def _allowed_methods(request: Request) -> str:
    """The methods of all routes of the path; for `*` (RFC 9110, 9.3.7), those of any route."""
    found = {
        method
        for method in ("GET", "POST")
        if request.url.path == "*"
        or any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL
            for route in request.app.router.routes
        )
    }
    implied = {"OPTIONS"} if found else set()
    implied |= {"HEAD"} if "GET" in found else set()
    return ", ".join(sorted(found | implied))


async def _bug(request: Request, _: Exception) -> Response:
    """Answer 500 for a bug of ours, without its text; the server logs it."""
    return _problem(request, HTTPException(500))
