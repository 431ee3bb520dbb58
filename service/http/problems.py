"""Problem documents (RFC 9457): an error as clients read it, and as OpenAPI documents it."""

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import Request
from pydantic import BaseModel

from service.errors import (
    BadRequest,
    BodyTooLarge,
    BundleUnusable,
    DeadlineExceeded,
    EngineStopped,
    Forbidden,
    HostNotAllowed,
    InvalidRequest,
    ModelFailure,
    ModelNotFound,
    QueueFull,
    ServiceError,
    Unauthorized,
    UnsupportedMediaType,
)
from service.http.option_names import pointer_of
from service.http.sse import ServerSentEvent
from service.http.wire import FieldErrorOut, Problem
from service.observe.request_context import current_request
from service.settings import Settings

_DEFAULTS = Settings()

# For each status, an example of the error and the description in the OpenAPI document.
_DOCUMENTED: dict[ServiceError, str] = {
    BadRequest("the body is not JSON"): "The body is not JSON.",
    Unauthorized(
        "send a known key: Authorization: Bearer <key>"
    ): "The request needs an API key and has none, or an unknown one.",
    Forbidden("this takes a key with the role use"): "The API key does not allow this request.",
    ModelNotFound(
        "no such model; the models are alice-lstm, g2p-en"
    ): "No served model has that name.",
    BundleUnusable(
        "alice-lstm: step.int8.onnx: its SHA-256 is not the manifest's"
    ): "The bundle cannot be served; the models served before stay in service.",
    BodyTooLarge(
        f"the body may have {_DEFAULTS.max_body_bytes} bytes at most"
    ): "The body is over the limit.",
    UnsupportedMediaType(
        "send the body with Content-Type: application/json"
    ): "The body has a media type that the operation does not accept, or it is compressed.",
    HostNotAllowed(
        "this server answers for other names; see UNROLL_ALLOWED_HOSTS"
    ): "The Host header names another server.",
    InvalidRequest.of_option(
        "max_tokens", f"too many tokens; at most {_DEFAULTS.max_tokens} are allowed"
    ): "A field is invalid or over a limit; `errors` points at it.",
    QueueFull(
        f"{_DEFAULTS.max_queue_requests} requests wait for this model, with 1024 rows and 20480 "
        f"tokens; at most {_DEFAULTS.max_queue_requests} requests, {_DEFAULTS.max_queue_rows} rows "
        f"and {_DEFAULTS.max_queue_tokens} tokens may wait",
        headers={"Retry-After": "1"},
    ): "The queue is full; see Retry-After.",
    ModelFailure(
        "the model run failed; other requests go on"
    ): "The model run failed for this request.",
    EngineStopped(
        "the engine of this model is not running", headers={"Retry-After": "1"}
    ): "The engine is not running; see Retry-After.",
    DeadlineExceeded(
        f"this request may take {_DEFAULTS.request_timeout_s:g} s"
    ): "The request took too long.",
}


def _documented(error: ServiceError, text: str) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Problem"}
    example = problem_of(error, "4f0d3c8e9b1a4c5f8e7d6c5b4a392817").model_dump()
    content = {"application/problem+json": {"schema": schema, "example": example}}
    headers = _documented_headers(error)
    return {"description": text, "model": Problem, "content": content, "headers": headers}


def _documented_headers(error: ServiceError) -> dict[str, Any]:
    """The OpenAPI entry of Retry-After, if the error has it."""
    described = {
        "description": "Seconds after which to try again.",
        "required": True,
        "schema": {"type": "integer", "minimum": 0},
    }
    return {name: {**described, "example": int(value)} for name, value in error.headers.items()}


def problem_of(error: ServiceError, request_id: str) -> Problem:
    """The problem document of an error (RFC 9457)."""
    return Problem(
        type=error.type,
        title=error.title,
        status=error.status,
        detail=error.detail,
        request_id=request_id,
        errors=[FieldErrorOut(pointer=pointer_of(x), detail=x.detail) for x in error.errors],
    )


# Only answered on /admin.
_ADMIN = {BundleUnusable.status}


ALL_PROBLEMS: dict[int | str, dict[str, Any]] = {
    error.status: _documented(error, text) for error, text in _DOCUMENTED.items()
}


# The problems that operations on models can answer with.
PROBLEMS = {status: each for status, each in ALL_PROBLEMS.items() if status not in _ADMIN}


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entries of these statuses."""
    return {status: ALL_PROBLEMS[status] for status in statuses}


def problems_as(
    form: Callable[[Problem], BaseModel], statuses: Mapping[int, int] | None = None
) -> dict[int | str, dict[str, Any]]:
    """`PROBLEMS` in another interface's form, some with another status."""
    documented: dict[int | str, dict[str, Any]] = {}
    for error, text in _DOCUMENTED.items():
        if error.status in _ADMIN:
            continue
        formed = form(problem_of(error, ""))
        documented[(statuses or {}).get(error.status, error.status)] = {
            "description": text,
            "model": type(formed),
            "content": {"application/json": {"example": formed.model_dump()}},
            "headers": _documented_headers(error),
        }
    return documented


def problem_document(request: Request, error: ServiceError) -> Problem:
    """The problem document of the error that ends the request."""
    current_request().outcome = error.type
    return problem_of(error, request.scope.get("unroll.request_id", ""))


def error_event(request: Request, error: ServiceError) -> ServerSentEvent:
    """The last event of a stream that failed."""
    return ServerSentEvent(problem_document(request, error).model_dump_json(), "error")
