"""Request bodies: receive up to a limit, check the Content-Type, parse and validate JSON.

Large bodies are parsed in a thread, so that the event loop never waits for them.
"""

import codecs
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json
from starlette.requests import Request

from service.errors import (
    BadRequest,
    BodyTooLarge,
    ClientGone,
    InvalidRequest,
    OptionError,
    QueueFull,
    UnsupportedMediaType,
)
from service.http.heads import header
from service.http.json_values import holds_more_values
from service.http.nearest_names import nearest_field
from service.http.option_names import pointer_of
from service.observe.byte_budget import ByteBudget
from service.observe.request_context import current_request
from service.runtime.threads import in_thread

Schema = TypeVar("Schema", bound=BaseModel)
Other = TypeVar("Other", bound=BaseModel)

_JSON = ("application/json",)
LARGE_BYTES = 64 * 1024
# With more errors, the answer gives only their number: a list could be larger than the body.
_MAX_MISTAKES = 100
# Unknown fields of one body for which the nearest known name is looked up.
_MAX_SUGGESTED = 8


async def read_body(
    request: Request, schema: type[Schema], media_types: Sequence[str] = _JSON
) -> Schema:
    """The JSON body as `schema`. Raises the errors of 400, 413, 415 and 422.

    Routes call it instead of having it injected: a FastAPI dependency costs as much as the parsing.
    """
    body = await read_bytes(request, media_types)
    if len(body) <= LARGE_BYTES:
        return _parse(schema, body)
    limit: int = request.app.state.settings.max_values
    return await in_thread(lambda: _parse_large(schema, body, limit))


async def read_either(
    request: Request, schema: type[Schema], other: type[Other], names: Collection[str]
) -> Schema | Other:
    """The JSON body as `other` if it has one of the fields `names`, else as `schema`.

    Raises the errors of `read_body`.
    """
    body = await read_bytes(request, _JSON)
    if len(body) <= LARGE_BYTES:
        return _parse_either(schema, other, names, body)
    limit: int = request.app.state.settings.max_values

    def parse() -> Schema | Other:
        check_values(body, limit)
        return _parse_either(schema, other, names, body)

    return await in_thread(parse)


async def read_bytes(
    request: Request, media_types: Sequence[str], limit: int | None = None
) -> bytearray:
    """The body, which must have one of these media types. Raises the errors of 413 and 415.

    `limit`, in bytes, is for routes with a lower limit than the setting.
    """
    _check_type(request, media_types)
    largest: int = request.app.state.settings.max_body_bytes
    return await _receive(request, largest if limit is None else min(limit, largest))


def check_values(body: bytes | bytearray, limit: int) -> None:
    """Raise InvalidRequest if a large JSON body has more values than the limit."""
    if len(body) > LARGE_BYTES and holds_more_values(body, limit):
        raise InvalidRequest(
            f"the body has too many values (texts in lists, token ids and so on); at most {limit} "
            "are allowed"
        )


def body_documentation(*schemas: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI entry for a body that `read_body` reads, or `read_either`."""
    shown = [inlined_schema(schema) for schema in schemas]
    content = {"schema": shown[0] if len(shown) == 1 else {"anyOf": shown}}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def inlined_schema(schema: type[BaseModel]) -> dict[str, Any]:
    """A self-contained JSON schema, for OpenAPI entries that FastAPI copies unchanged."""
    whole = schema.model_json_schema()
    inlined: dict[str, Any] = _inlined(whole, whole.pop("$defs", {}))
    return inlined


def _inlined(node: Any, definitions: dict[str, Any]) -> Any:
    """A schema with each reference replaced by its definition."""
    if isinstance(node, list):
        return [_inlined(each, definitions) for each in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        rest = {name: value for name, value in node.items() if name != "$ref"}
        node = definitions[node["$ref"].removeprefix("#/$defs/")] | rest
    return {name: _inlined(value, definitions) for name, value in node.items()}


def _check_type(request: Request, media_types: Sequence[str]) -> None:
    scope = request.scope
    given = header(scope, b"content-type").split(";")[0].strip().lower()
    if given not in media_types:
        raise UnsupportedMediaType(f"send the body with Content-Type: {media_types[0]}")
    if header(scope, b"content-encoding", "identity").strip().lower() != "identity":
        raise UnsupportedMediaType("send the body without Content-Encoding")


async def _receive(request: Request, limit: int) -> bytearray:
    declared = header(request.scope, b"content-length")
    # int() refuses more than 4300 digits; more than twenty are over any limit.
    if declared.isdecimal() and (len(declared) > 20 or int(declared) > limit):
        raise _too_large(limit)
    body = bytearray()
    budget: ByteBudget = request.app.state.bodies
    taken = LARGE_BYTES  # every request may use this much without asking the budget
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone("the client closed the connection while it sent the body")
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > limit:
            raise _too_large(limit)
        if len(body) > taken:
            if not current_request().take_bytes(budget, len(body) - taken):
                raise _no_room(budget)
            taken = len(body)
    return body


def _too_large(limit: int) -> BodyTooLarge:
    # The rest of the body is not read, so the connection cannot be reused.
    headers = {"Connection": "close"}
    return BodyTooLarge(f"the body may have {limit} bytes at most", headers=headers)


def _no_room(budget: ByteBudget) -> QueueFull:
    headers = {"Retry-After": "1", "Connection": "close"}
    return QueueFull(
        f"the request bodies being received may have {budget.limit} bytes in total, and there is "
        "no room for this one now; try again",
        headers=headers,
    )


def _parse_large(schema: type[Schema], body: bytearray, limit: int) -> Schema:
    check_values(body, limit)
    return _parse(schema, body)


def _parse_either(
    schema: type[Schema], other: type[Other], names: Collection[str], body: bytearray
) -> Schema | Other:
    _remove_mark(body)
    # What is not JSON is told so by either.
    content = None
    if any(f'"{name}"'.encode() in body for name in names):
        with suppress(ValueError):
            content = from_json(body)
    is_other = isinstance(content, dict) and not content.keys().isdisjoint(names)
    return _parse(other, body) if is_other else _parse(schema, body)


def _parse(schema: type[Schema], body: bytearray) -> Schema:
    _remove_mark(body)
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        raise _encoding_error(body) or field_errors(schema, error) from error


def _remove_mark(body: bytearray) -> None:
    # A parser may ignore a byte order mark (RFC 8259, 8.1), and some clients send one.
    if body.startswith(codecs.BOM_UTF8):
        del body[: len(codecs.BOM_UTF8)]


def _encoding_error(body: bytearray) -> BadRequest | None:
    """The error for a body that is not UTF-8, with the place; None if it is UTF-8."""
    if body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return BadRequest("the body is UTF-16; send it as UTF-8")
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        return BadRequest(f"the body is not valid UTF-8 at byte {error.start} (counted from 0)")
    return None


def field_errors(schema: type[BaseModel], error: ValidationError) -> BadRequest | InvalidRequest:
    """The service's error for pydantic's errors in a body."""
    if error.error_count() > _MAX_MISTAKES:
        return InvalidRequest(f"the body has {error.error_count()} errors")
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
    # JSON (RFC 8259) allows a lone surrogate, but no text can contain one; the parser complains
    # that the other half is missing. JSON also allows numbers of any length.
    if "surrogate" in message or "end of hex escape" in message:
        return InvalidRequest("a string contains a lone surrogate, which is not a character")
    if "number out of range" in message:
        return InvalidRequest("a number has too many digits")
    return BadRequest("the body is not JSON")


def _field_error(schema: type[BaseModel], mistake: ErrorDetails, *, suggests: bool) -> OptionError:
    detail = mistake["msg"].removeprefix("Value error, ")
    parts: list[int | str] = []
    inside = schema
    for part in mistake["loc"]:
        # Leave out the names of a union's branches and names that the client made up.
        if isinstance(part, int):
            parts.append(part)
        elif part in inside.model_fields:
            parts.append(part)
            inside = _schema_in(inside.model_fields[part].annotation) or inside
    if mistake["type"] == "extra_forbidden":
        names = ", ".join(inside.model_fields)
        meant = nearest_field(str(mistake["loc"][-1]), inside.model_fields) if suggests else None
        detail = "unknown field; " + (
            f"the known fields are {names}"
            if meant is None
            else f"did you mean `{meant}`? The known fields are {names}"
        )
    option, *within = parts or [""]
    return OptionError(str(option), detail, tuple(within))


def _schema_in(annotation: Any) -> type[BaseModel] | None:
    """The schema in a field's annotation, or the first in a union; None if there is none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_schema_in(argument) for argument in get_args(annotation))
    return next((each for each in found if each is not None), None)
