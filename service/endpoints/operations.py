"""What operators ask: whether it lives and is ready, its numbers, and which models it serves.

Where several processes serve, health is that of the process that answers; numbers and changes of
models are of all.
"""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from service.endpoints.operations_wire import Changed, EngineState, FailedModel, Live, Ready
from service.http.problems import problem_responses
from service.observe.lifecycle import Lifecycle
from service.observe.metrics import Metrics
from service.settings import Settings
from service.tasks.decisions import Change
from service.tasks.registry import ModelRegistry

router = APIRouter()

Name = Annotated[str, Path(description="Name of a bundle in the models folder.")]


@router.get("/livez", responses={503: {"model": Live}}, tags=["health"])
async def livez(request: Request, response: Response) -> Live:
    """Whether the process works: 503 where an engine hangs, and it has to be started anew."""
    reasons = _stalls(request)
    if reasons:
        response.status_code = 503
    return Live(status="stalled" if reasons else "live", reasons=reasons)


@router.get("/readyz", responses={503: {"model": Ready}}, tags=["health"])
async def readyz(request: Request, response: Response) -> Ready:
    """Whether to send traffic, why not, and the age of each engine's last step."""
    state = request.app.state
    registry: ModelRegistry = state.registry
    states = [
        EngineState(
            model=name,
            ready=engine.workers.alive,
            last_step_age_s=engine.workers.age_s(),
            stalled_s=engine.workers.stalled_s(),
        )
        for name, engine in sorted(registry.engines.items())
    ]
    reasons = [*state.lifecycle.reasons, *_stalls(request)]
    reasons += [f"the engine of {x.model} is not running" for x in states if not x.ready]
    if not registry.cards:
        reasons.append("no model is served")
    if reasons:
        response.status_code = 503
    failed = [FailedModel(name=name, cause=x) for name, x in sorted(registry.failed.items())]
    return Ready(
        status="not ready" if reasons else "ready",
        reasons=list(dict.fromkeys(reasons)),
        engines=states,
        failed=failed,
    )


def _stalls(request: Request) -> list[str]:
    registry: ModelRegistry = request.app.state.registry
    lifecycle: Lifecycle = request.app.state.lifecycle
    settings: Settings = request.app.state.settings
    reasons = [] if lifecycle.fatal is None else [lifecycle.fatal]
    reasons += [
        f"the engine of {name} hangs in a step"
        for name, engine in sorted(registry.engines.items())
        if engine.workers.stalled_s() > settings.watchdog_s
    ]
    return list(dict.fromkeys(reasons))


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    tags=["health"],
)
async def metrics(request: Request) -> Response:
    """The server's numbers, for Prometheus."""
    show_gauges(request.app.state.registry, request.app.state.metrics, request.app.state.lifecycle)
    numbers: Metrics = request.app.state.metrics
    content, media_type = await asyncio.to_thread(numbers.exposition)
    return Response(content, headers={"Content-Type": media_type})


def show_gauges(registry: ModelRegistry, metrics: Metrics, lifecycle: Lifecycle) -> None:
    """Set the gauges, which show the present moment."""
    metrics.ready.set(bool(registry.cards) and registry.is_alive and not lifecycle.reasons)
    metrics.show_models(len(registry.cards), len(registry.engines), registry.open_bytes)
    metrics.show_engines({name: x.workers.gauges() for name, x in registry.engines.items()})


# "4XX" keeps FastAPI from documenting its own 422, which no name can cause.
_CHANGES = {**problem_responses(401, 403, 404, 409), "4XX": problem_responses(404)[404]}


@router.post("/admin/models/{name}/load", responses=_CHANGES, tags=["admin"])
async def load(name: Name, request: Request) -> Changed:
    """Serve a bundle of the models folder; nothing changes where it is served."""
    return _told(await _registry(request).load(name))


@router.post("/admin/models/{name}/unload", responses=_CHANGES, tags=["admin"])
async def unload(name: Name, request: Request) -> Changed:
    """Serve a model no longer. What is asked of it already is answered."""
    return _told(await _registry(request).unload(name))


@router.post("/admin/models/{name}/reload", responses=_CHANGES, tags=["admin"])
async def reload(name: Name, request: Request) -> Changed:
    """Serve a bundle as it is on disk now, in every server process.

    It is verified first: where it cannot be served, the version before it goes on. Requests end
    with the version that they began with.
    """
    return _told(await _registry(request).reload(name))


def _registry(request: Request) -> ModelRegistry:
    registry: ModelRegistry = request.app.state.registry
    return registry


def _told(change: Change) -> Changed:
    return Changed(
        model=change.name,
        status="served" if change.is_served else "unloaded",
        changed=change.changed,
    )
