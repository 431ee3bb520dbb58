"""Helpers of all routes: find the engine, notice a disconnect, write the answer."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request, Response
from pydantic import BaseModel
from pydantic_core import to_json

from service.errors import ClientGone
from service.http.live import client_gone
from service.observe.request_context import current_request
from service.runtime.interrupts import Interruptible
from service.runtime.threads import LARGE_CHARS, in_thread
from service.tasks.engine import Ability, Engine
from service.tasks.registry import ModelRegistry

Able = TypeVar("Able")
Result = TypeVar("Result")


def registry_of(request: Request) -> ModelRegistry:
    """The served models."""
    registry: ModelRegistry = request.app.state.registry
    return registry


async def engine_named(request: Request, name: str | None) -> Engine:
    """The engine of a model, kept alive until the request has ended.

    Without a name, it is the only engine. Raises ModelNotFound, InvalidRequest and what opening a
    model at its first use raises.
    """
    registry: ModelRegistry = request.app.state.registry
    return await registry.held(name)


async def engine_with(request: Request, name: str | None, ability: Ability[Able]) -> Able:
    """The engine of a model, for something that not every kind of model can do.

    Without a name, it is the only engine that can. Raises what `engine_named` raises.
    """
    registry: ModelRegistry = request.app.state.registry
    return await registry.with_ability(name, ability)


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of the work; a disconnect cancels it, and its rows leave the batch.

    Raises ClientGone.
    """
    on_gone = request.scope.get("unroll.on_gone")
    with Interruptible() as part:
        if on_gone is not None:
            on_gone(lambda: part.interrupt(_gone()))
            return await work
        # Another server than ours: a disconnect is a message.
        watching = asyncio.create_task(client_gone(request.receive))
        watching.add_done_callback(lambda _: part.interrupt(_gone()))
        try:
            return await work
        finally:
            watching.cancel()


def _gone() -> ClientGone:
    return ClientGone("the client closed the connection")


async def json_answer(
    size: int, build: Callable[[], BaseModel], *, exclude: set[str] | None = None
) -> Response:
    """The answer as JSON; a large one is built and serialized in a thread."""

    def render() -> bytes:
        # Straight to bytes: a large answer as text would be a second copy.
        return to_json(build(), exclude=exclude)

    content = render() if size <= LARGE_CHARS else await in_thread(render)
    current_request().end_building()
    return Response(content, media_type="application/json")
