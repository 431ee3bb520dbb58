"""Request bodies: received with a bound, checked for their type, parsed off the event loop."""

import codecs
from collections.abc import Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import ClientDisconnect, Request

from service.errors import (
    BadRequest,
    BodyTooLarge,
    ClientGone,
    InvalidRequest,
    OptionError,
    QueueFull,
    UnsupportedMediaType,
)
from service.http.json_values import holds_more_values
from service.http.nearest_names import nearest_field
from service.http.option_names import pointer_of
from service.observe.byte_budget import ByteBudget
from service.observe.request_context import current_request
from service.runtime.threads import in_thread

Schema = TypeVar("Schema", bound=BaseModel)

LARGE_BYTES = 64 * 1024
# Of more mistakes the answer tells the number only: a list of them could outgrow the body.
_MAX_MISTAKES = 100
# Unknown names for which the nearest known one is looked for.
_MAX_SUGGESTED = 8


async def read_body(
    request: Request, schema: type[Schema], media_types: Sequence[str] = ("application/json",)
) -> Schema:
    """The body as `schema`: JSON, whatever it is called. Raises the errors of 400, 413, 415, 422.

    Called by the route rather than injected: what FastAPI spends on a dependency is as much as the
    parsing itself.
    """
    body = await read_bytes(request, media_types)
    if len(body) <= LARGE_BYTES:
        return _parse(schema, body)
    limit: int = request.app.state.settings.max_values
    return await in_thread(lambda: _parse_large(schema, body, limit))


async def read_bytes(
    request: Request, media_types: Sequence[str], limit: int | None = None
) -> bytearray:
    """The body, which must be of one of these types. Raises the errors of 413 and 415.

    `limit` is for bodies that have a smaller one than the setting.
    """
    _check_type(request, media_types)
    largest: int = request.app.state.settings.max_body_bytes
    return await _receive(request, largest if limit is None else min(limit, largest))


def check_values(body: bytes | bytearray, limit: int) -> None:
    """Raise InvalidRequest for a large JSON body that holds more values than the limit."""
    if len(body) > LARGE_BYTES and holds_more_values(body, limit):
        raise InvalidRequest(
            f"the body holds too many values; at most {limit} are allowed, such as texts in lists "
            "and token ids"
        )


def body_documentation(schema: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI entry of a body that `read_body` reads."""
    content = {"schema": inlined_schema(schema)}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def inlined_schema(schema: type[BaseModel]) -> dict[str, Any]:
    """A JSON schema that stands by itself, for entries that FastAPI takes as they are."""
    whole = schema.model_json_schema()
    inlined: dict[str, Any] = _inlined(whole, whole.pop("$defs", {}))
    return inlined


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


def _check_type(request: Request, media_types: Sequence[str]) -> None:
    given = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if given not in media_types:
        raise UnsupportedMediaType(f"send the body with Content-Type: {media_types[0]}")
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise UnsupportedMediaType("send the body without Content-Encoding")


async def _receive(request: Request, limit: int) -> bytearray:
    declared = request.headers.get("content-length", "")
    # Python converts numbers of up to 4300 digits, and twenty are over any limit.
    if declared.isdecimal() and (len(declared) > 20 or int(declared) > limit):
        raise _too_large(limit)
    body = bytearray()
    budget: ByteBudget = request.app.state.bodies
    taken = LARGE_BYTES  # so much everyone has
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise _too_large(limit)
            if len(body) > taken:
                if not current_request().take_bytes(budget, len(body) - taken):
                    raise _no_room(budget)
                taken = len(body)
    except ClientDisconnect as error:
        raise ClientGone("the client closed the connection within the body") from error
    return body


def _too_large(limit: int) -> BodyTooLarge:
    # The rest is not read, so the connection cannot be used again.
    headers = {"Connection": "close"}
    return BodyTooLarge(f"the body may have {limit} bytes at most", headers=headers)


def _no_room(budget: ByteBudget) -> QueueFull:
    headers = {"Retry-After": "1", "Connection": "close"}
    return QueueFull(
        f"the bodies of the requests in hand may have {budget.limit} bytes together, and do",
        headers=headers,
    )


def _parse_large(schema: type[Schema], body: bytearray, limit: int) -> Schema:
    check_values(body, limit)
    return _parse(schema, body)


def _parse(schema: type[Schema], body: bytearray) -> Schema:
    # A reader may pass over a byte order mark (RFC 8259, 8.1), and some clients write one.
    if body.startswith(codecs.BOM_UTF8):
        del body[: len(codecs.BOM_UTF8)]
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        raise _encoding_error(body) or field_errors(schema, error) from error


def _encoding_error(body: bytearray) -> BadRequest | None:
    """What is wrong with a body that is not UTF-8, and where; None where it is."""
    if body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return BadRequest("the body is UTF-16; send it as UTF-8")
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        where = f"byte {error.start}, counted from 0, is no part of a character"
        return BadRequest(f"the body is not UTF-8: {where}")
    return None


def field_errors(schema: type[BaseModel], error: ValidationError) -> BadRequest | InvalidRequest:
    """What a body's mistakes are told as."""
    if error.error_count() > _MAX_MISTAKES:
        return InvalidRequest(f"the body holds {error.error_count()} mistakes")
    mistakes = error.errors(include_url=False, include_input=False, include_context=False)
    if mistakes[0]["type"] == "json_invalid":
        return _syntax_error(mistakes[0]["msg"])
    errors = [
        _field_error(schema, mistake, suggests=i < _MAX_SUGGESTED)
        for i, mistake in enumerate(mistakes)
    ]
    return InvalidRequest(
        "; ".join(f"{pointer_of(x) or 'the body'}: {x.detail}" for x in errors[:3]), errors=errors
    )


def _syntax_error(message: str) -> BadRequest | InvalidRequest:
    # A lone surrogate is well-formed JSON (RFC 8259) that no text can hold; the parser misses the
    # rest of the pair. A number may have any number of digits there.
    if "surrogate" in message or "end of hex escape" in message:
        return InvalidRequest("a string holds a lone surrogate, which is not a character")
    if "number out of range" in message:
        return InvalidRequest("a number has too many digits")
    return BadRequest("the body is not JSON")


def _field_error(schema: type[BaseModel], mistake: ErrorDetails, *, suggests: bool) -> OptionError:
    detail = mistake["msg"].removeprefix("Value error, ")
    parts: list[int | str] = []
    inside = schema
    for part in mistake["loc"]:
        # Names of a union's branches and names that the client made up are no part of the place.
        if isinstance(part, int):
            parts.append(part)
        elif part in inside.model_fields:
            parts.append(part)
            inside = _schema_in(inside.model_fields[part].annotation) or inside
    if mistake["type"] == "extra_forbidden":
        names = ", ".join(inside.model_fields)
        meant = nearest_field(str(mistake["loc"][-1]), inside.model_fields) if suggests else None
        detail = "there is no such field; " + (
            f"there are {names}" if meant is None else f"did you mean `{meant}`? There are {names}"
        )
    option, *within = parts or [""]
    return OptionError(str(option), detail, tuple(within))


def _schema_in(annotation: Any) -> type[BaseModel] | None:
    """The schema that a field holds, or one of a union's; None where it holds none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_schema_in(argument) for argument in get_args(annotation))
    return next((each for each in found if each is not None), None)
