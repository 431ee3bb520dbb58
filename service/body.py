"""Request bodies: received with a bound, checked for their type, parsed off the event loop."""

import asyncio
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import ClientDisconnect, Request

from service.errors import (
    BadRequest,
    BodyTooLarge,
    ClientGone,
    FieldError,
    InvalidRequest,
    UnsupportedMediaType,
)

Schema = TypeVar("Schema", bound=BaseModel)

LARGE_BYTES = 64 * 1024
# Of more mistakes the answer tells the number only: a list of them could outgrow the body.
_MAX_MISTAKES = 100


async def read_body(request: Request, schema: type[Schema]) -> Schema:
    """The body as `schema`. Raises the errors of 400, 413, 415 and 422.

    Called by the route rather than injected: what FastAPI spends on a dependency is as much as the
    parsing itself.
    """
    _check_type(request)
    body = await _receive(request, request.app.state.settings.max_body_bytes)
    if len(body) <= LARGE_BYTES:
        return _parse(schema, body)
    return await asyncio.to_thread(_parse, schema, body)


def body_documentation(schema: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI entry of a body that `read_body` reads."""
    whole = schema.model_json_schema()
    content = {"schema": _inlined(whole, whole.pop("$defs", {}))}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def _inlined(node: Any, definitions: dict[str, Any]) -> Any:
    """A schema with the definitions in the place of references, which would lead nowhere here."""
    if isinstance(node, list):
        return [_inlined(each, definitions) for each in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        rest = {name: value for name, value in node.items() if name != "$ref"}
        node = definitions[node["$ref"].removeprefix("#/$defs/")] | rest
    return {name: _inlined(value, definitions) for name, value in node.items()}


def _check_type(request: Request) -> None:
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType("send the body with Content-Type: application/json")
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise UnsupportedMediaType("send the body without Content-Encoding")


async def _receive(request: Request, limit: int) -> bytes:
    declared = request.headers.get("content-length", "")
    # Python converts numbers of up to 4300 digits, and twenty are over any limit.
    if declared.isdecimal() and (len(declared) > 20 or int(declared) > limit):
        raise _too_large(limit)
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise _too_large(limit)
    except ClientDisconnect as error:
        raise ClientGone("the client closed the connection within the body") from error
    return bytes(body)


def _too_large(limit: int) -> BodyTooLarge:
    # The rest is not read, so the connection cannot be used again.
    headers = {"Connection": "close"}
    return BodyTooLarge(f"the body may have {limit} bytes at most", headers=headers)


def _parse(schema: type[Schema], body: bytes) -> Schema:
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        if error.error_count() > _MAX_MISTAKES:
            raise InvalidRequest(f"the body holds {error.error_count()} mistakes") from error
        mistakes = error.errors(include_url=False, include_input=False, include_context=False)
        if mistakes[0]["type"] == "json_invalid":
            raise _syntax_error(mistakes[0]["msg"]) from error
        errors = [_field_error(schema, mistake) for mistake in mistakes]
        raise InvalidRequest(
            "; ".join(f"{x.pointer or 'the body'}: {x.detail}" for x in errors[:3]), errors=errors
        ) from error


def _syntax_error(message: str) -> BadRequest | InvalidRequest:
    # A lone surrogate is well-formed JSON (RFC 8259) that no text can hold; the parser misses the
    # rest of the pair. A number may have any number of digits there.
    if "surrogate" in message or "end of hex escape" in message:
        return InvalidRequest("a string holds a lone surrogate, which is not a character")
    if "number out of range" in message:
        return InvalidRequest("a number has too many digits")
    return BadRequest("the body is not JSON")


def _field_error(schema: type[BaseModel], mistake: ErrorDetails) -> FieldError:
    location = mistake["loc"]
    detail = mistake["msg"].removeprefix("Value error, ")
    if mistake["type"] == "extra_forbidden":
        # The name that the client made up is not repeated.
        location = location[:-1]
        detail = f"there is no such field; there are {', '.join(schema.model_fields)}"
    # A union's location ends with names of its branches, which are not part of the document.
    parts = [part for part in location if isinstance(part, int) or part in schema.model_fields]
    return FieldError("".join(f"/{part}" for part in parts), detail)
