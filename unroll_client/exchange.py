"""Shared by both clients: builds requests from arguments, and results or errors from answers."""

import json
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from ipaddress import ip_address
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from unroll_client.errors import ConnectionFailed, ServerError, UnrollError, error_of
from unroll_client.events import Event, EventParser
from unroll_client.results import (
    GenerateDone,
    Model,
    StreamedToken,
    TranslateAnswer,
    TranslatedToken,
    built,
)

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT_S = 120.0  # the service's own, for one request
# Lines in one request of a stream of lines: over HTTP/1.1, httpx sends the whole body first.
LINES = 512

Answer = TypeVar("Answer")

GENERATE: dict[str, type[Any]] = {"token": StreamedToken, "done": GenerateDone}
TRANSLATE: dict[str, type[Any]] = {"token": TranslatedToken, "done": TranslateAnswer}


class EventReader:
    """Events as dataclasses; the error event is raised."""

    def __init__(self, kinds: dict[str, type[Any]]) -> None:
        self._kinds = kinds
        self._parser = EventParser()
        self._done = False

    def feed(self, text: str) -> Iterator[Any]:
        """The events that this text completes, in order; an error is raised in its turn."""
        return (self._read(event) for event in self._parser.feed(text))

    def end(self) -> None:
        """Raise ConnectionFailed if the stream broke off."""
        if not self._done:
            raise ConnectionFailed("the stream ended before its last event")

    def _read(self, event: Event) -> Any:
        data = json.loads(event.data)
        if event.name not in self._kinds:
            raise error_of(int(data.get("status", 500)), data, {})
        self._done = event.name == "done"
        return answer_of(self._kinds[event.name], data)


def mounts_of(base_url: str) -> dict[str, None]:
    """Bypass the environment's proxy (`http_proxy`) for this machine's own addresses."""
    host = httpx.URL(base_url).host
    try:
        is_here = ip_address(host).is_loopback
    except ValueError:
        is_here = host == "localhost" or host.endswith(".localhost")
    return {"all://": None, "http://": None, "https://": None} if is_here else {}


def headers_of(api_key: str | None) -> dict[str, str]:
    """The headers of every request."""
    return {} if api_key is None else {"Authorization": f"Bearer {api_key}"}


def model_headers(model: Any) -> dict[str, str]:
    """Names the model beside the body, for a proxy that sends each model's requests to one server.

    Percent-encoded (RFC 3986), since a header takes no other text; the service ignores it.
    """
    return {"X-Unroll-Model": quote(model, safe="")} if isinstance(model, str) else {}


def pages_of(pages: Iterable[dict[str, Any]]) -> tuple[Model, ...]:
    """The models of all pages."""
    return tuple(built(Model, each) for page in pages for each in page["models"])


def page_path(after: str) -> str:
    """The path of a page of models."""
    return f"/models?after={quote(after, safe='')}" if after else "/models"


def body_of(options: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """A request's JSON, without omitted options."""
    return {name: x for name, x in {**fields, **options}.items() if x is not None}


def lines_of(texts: list[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """A streamed request for some texts, as arguments of httpx."""
    return {
        "params": {
            name: str(x).lower() if isinstance(x, bool) else x for name, x in options.items()
        },
        "headers": {"Content-Type": "application/x-ndjson", **model_headers(options.get("model"))},
        "content": b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts),
    }


def line_results(kind: type[Answer], answer: httpx.Response) -> Iterator[Answer | UnrollError]:
    """The results of a stream of lines, in order. Raises what ended the stream."""
    if answer.status_code != 200:
        content_of(answer)
    for line in answer.text.splitlines():
        told = json.loads(line)
        if "error" in told and "line" not in told:
            raise error_of(int(told["error"]["status"]), told["error"], {})
        if "error" in told:
            yield error_of(int(told["error"]["status"]), told["error"], {})
        else:
            yield answer_of(kind, told)


def content_of(answer: httpx.Response) -> dict[str, Any]:
    """An answer's JSON. Raises UnrollError if it is an error or not JSON."""
    try:
        content = answer.json()
    except ValueError:
        content = None
    if answer.status_code != 200:
        raise error_of(answer.status_code, content, answer.headers)
    if not isinstance(content, dict):
        raise ServerError("the answer is not JSON", status=answer.status_code)
    return content


def answer_of(kind: type[Answer], content: Any) -> Answer:
    """An answer as its dataclass. Raises ServerError if it does not fit."""
    try:
        return built(kind, content)
    except (KeyError, TypeError) as error:
        raise ServerError("the answer is not from an Unroll service") from error


@contextmanager
def connecting() -> Iterator[None]:
    """Raise httpx's errors as ConnectionFailed."""
    try:
        yield
    except httpx.HTTPError as error:
        raise _failed(error) from error


def _failed(error: httpx.HTTPError) -> ConnectionFailed:
    if isinstance(error, httpx.ConnectError):
        url = error.request.url
        where = f"{url.scheme}://{url.netloc.decode()}"
        return ConnectionFailed(f"nothing answers at {where} ({error}); is the server running?")
    return ConnectionFailed(f"{type(error).__name__}: {error}")


@asynccontextmanager
async def connecting_async() -> AsyncIterator[None]:
    """The same around asynchronous requests."""
    try:
        yield
    except httpx.HTTPError as error:
        raise _failed(error) from error
