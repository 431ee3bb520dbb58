"""What every route does besides its own: find the engine, mind the client, write the answer."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request, Response
from pydantic import BaseModel

from service.errors import ClientGone, InvalidRequest, ModelNotFound, ServiceError
from service.schemas import AnyEngine, FieldErrorOut, Problem
from service.sse import ServerSentEvent
from service.workers import LARGE_CHARS

Result = TypeVar("Result")

_PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
_STATUS = {
    400: "The body is not JSON.",
    404: "No served model has that name.",
    413: "The body is over the limit.",
    415: "The body is not application/json, or it is compressed.",
    422: "A field or a limit; `errors` points at it.",
    429: "The queue is full; see Retry-After.",
    500: "The model run failed for this request.",
    503: "The engine is not running; see Retry-After.",
    504: "The request took too long.",
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "model": Problem, "content": _PROBLEM}
    for status, text in _STATUS.items()
}


def engine_named(request: Request, name: str | None) -> AnyEngine:
    """An engine by its model's name, looked up in memory."""
    engines: dict[str, AnyEngine] = request.app.state.engines
    if name is None and len(engines) == 1:
        return next(iter(engines.values()))
    served = ", ".join(sorted(engines))
    if name is None:
        raise InvalidRequest.at("/model", f"name one of the served models: {served}")
    if name not in engines:
        raise ModelNotFound(f"there is no such model; there are {served}")
    return engines[name]


def texts_within(texts: str | list[str], pointer: str, request: Request) -> list[str]:
    """One text or a list of texts, as a list within the limit."""
    listed = [texts] if isinstance(texts, str) else texts
    limit = request.app.state.settings.max_inputs
    if len(listed) > limit:
        raise InvalidRequest.at(pointer, f"too many texts; at most {limit} are allowed")
    return listed


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The work's result. A client that goes away ends it, and its rows leave the batch."""
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone("the client closed the connection")
        return working.result()
    finally:
        # Also where this request itself is cancelled: neither may outlive it.
        for task in (working, watching):
            task.cancel()


async def _gone(request: Request) -> None:
    """Returns when the client has closed the connection; the body has been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def json_answer(size: int, build: Callable[[], BaseModel]) -> Response:
    """The answer as JSON, built and written in a thread where it is large."""

    def render() -> str:
        answer: BaseModel = build()
        return answer.model_dump_json()

    content = render() if size <= LARGE_CHARS else await asyncio.to_thread(render)
    return Response(content, media_type="application/json")


def problem_document(request: Request, error: ServiceError) -> Problem:
    """An error as the client reads it."""
    return Problem(
        type=error.type,
        title=error.title,
        status=error.status,
        detail=error.detail,
        request_id=request.scope.get("unroll.request_id", ""),
        errors=[FieldErrorOut(pointer=x.pointer, detail=x.detail) for x in error.errors],
    )


def error_event(request: Request, error: ServiceError) -> ServerSentEvent:
    """The last event of a stream that broke."""
    return ServerSentEvent(problem_document(request, error).model_dump_json(), "error")
