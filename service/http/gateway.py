"""ASGI middleware around the whole application: API key check, deadline, access log, metrics.

It also checks the Host header, rejects with 429 when the queue is full and with 503 while draining,
and adds the security headers, X-Request-Id and Server-Timing. A request that it rejects costs no
more than reading its headers: the body is not read.
"""

import asyncio
import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders, State
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import (
    Draining,
    Forbidden,
    HostNotAllowed,
    InvalidRequest,
    QueueFull,
    ServiceError,
    TooMuchUnsent,
    Unauthorized,
)
from service.http.api_keys import ApiKey, Role, known_key
from service.observe.byte_budget import ByteBudget
from service.observe.lifecycle import Lifecycle
from service.observe.metrics import Metrics
from service.observe.request_context import RequestContext, current_request, enter_request
from service.observe.trace_context import Span, Tracer, fresh_id
from service.settings import Settings
from service.tasks.limits import DETAILS_IN_HAND
from service.tasks.registry import ModelRegistry

# Health checks need no API key and are answered even while draining. The page is public as well: it
# has nothing that is not in the repository. With keys configured, every other path needs a key.
HEALTH = frozenset({"/livez", "/readyz", "/v2/health/live", "/v2/health/ready"})
_HOST = re.compile(r"(?:\[([^\[\]]+)\]|([^:\[\]]*))(?::[0-9]*)?")
# LibreTranslate's clients request the languages without a key.
_LIBRETRANSLATE = "/libretranslate"
PUBLIC = HEALTH | {
    *("/", "/docs", "/openapi.json"),
    *(f"{_LIBRETRANSLATE}/{name}" for name in ("languages", "frontend/settings", "health")),
}
# Paths whose clients may send their key in the body; the route then checks it.
KEY_IN_BODY = frozenset({f"{_LIBRETRANSLATE}/translate", f"{_LIBRETRANSLATE}/detect"})
PUBLIC_FOLDER = "/page/"

# Answers are data: a browser must not guess another type, show them in a frame or cache them.
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}

Render: TypeAlias = Callable[[Request, ServiceError], Response]

# Answers up to this size are always sent.
SMALL_BYTES = 64 * 1024

# The ids that a client may give its requests.
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

logger = logging.getLogger("service.requests")


@dataclass(frozen=True, slots=True)
class Doorkeeping:
    """What the gateway needs from the application. With `api_keys` None, no key is needed."""

    settings: Settings
    api_keys: Sequence[ApiKey] | None
    registry: ModelRegistry
    lifecycle: Lifecycle
    metrics: Metrics
    tracer: Tracer

    @classmethod
    def of(cls, state: State) -> "Doorkeeping":
        """From the application's state."""
        return cls(
            state.settings,
            state.api_keys,
            state.registry,
            state.lifecycle,
            state.metrics,
            state.tracer,
        )


class Gateway:
    """Gives each request an id, a trace and a deadline; admits or rejects it; logs its end."""

    def __init__(self, app: ASGIApp, *, doorkeeping: Doorkeeping, render: Render) -> None:
        self._app = app
        self._by = doorkeeping
        self._render = render
        self._details = ByteBudget(DETAILS_IN_HAND * doorkeeping.settings.max_details)
        self._building = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request to the application and its answer to the server (ASGI 3)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        _normalize_path(scope, self._by.settings.root_path)
        is_head = scope["method"] == "HEAD"
        if is_head:
            # Answered as GET, without the body. A copy, since the server still reads its own scope.
            scope = {**scope, "method": "GET", "unroll.has_room": None}
        headers = Headers(scope=scope)
        span = self._by.tracer.begin(headers)
        context = RequestContext(
            request_id=_request_id(headers),
            trace_id=span.trace_id,
            span_id=span.span_id,
            details=self._details,
            building=self._building,
        )
        enter_request(context)
        scope["unroll.request_id"] = context.request_id
        status, has_begun = 500, False  # the status if no answer comes

        async def send_out(message: Message) -> None:
            nonlocal status, has_begun
            if message["type"] == "http.response.start":
                status, has_begun = message["status"], True
                _add_headers(message, context)
            elif is_head:
                if message.get("more_body", False):
                    return
                message = {**message, "body": b""}
            await send(message)

        lifecycle = self._by.lifecycle
        try:
            with lifecycle.request():
                answering = self._admitted(scope, headers, context)
                await self._answer(answering, scope, receive, send_out)
        except asyncio.CancelledError:
            # The grace time is over: answer 503, unless an answer has begun.
            if not lifecycle.is_cut:
                raise
            context.outcome = Draining.type
            if not has_begun:
                await self._render(Request(scope), _draining())(scope, receive, send_out)
        finally:
            context.release()
            method = "HEAD" if is_head else scope["method"]
            self._ended(scope, method, status, context, span)

    def _admitted(self, scope: Scope, headers: Headers, context: RequestContext) -> ASGIApp:
        """The application, or the rejection of a request that is not admitted."""
        try:
            self._check(scope["method"], scope["path"], headers, context)
        except ServiceError as error:
            return self._render(Request(scope), error)
        return self._app

    def _check(self, method: str, path: str, headers: Headers, context: RequestContext) -> None:
        """Raise the error of a request that is not admitted; note the client and its timeout."""
        if path in HEALTH:
            return
        settings = self._by.settings
        if settings.hosts is not None and _host(headers) not in settings.hosts:
            raise HostNotAllowed("this server answers for other names; see UNROLL_ALLOWED_HOSTS")
        if path not in PUBLIC and not path.startswith(PUBLIC_FOLDER):
            self._check_key(method, path, headers, context)
        if self._by.lifecycle.phase == "draining" and path != "/metrics":
            raise _draining()
        context.timeout_s = _timeout_s(headers)
        # Streams wait for a place in the queue instead, and loading a model needs none.
        is_json = headers.get("content-type", "").startswith("application/json")
        if method == "POST" and is_json and not path.startswith("/admin/"):
            self._by.registry.refuse_if_full(context.client)

    def _check_key(self, method: str, path: str, headers: Headers, context: RequestContext) -> None:
        role = _role_of(path)
        if self._by.api_keys is None:
            if role == "admin":
                raise Forbidden("no admin key is configured; see UNROLL_API_KEYS_FILE")
            return
        given = _given_key(headers)
        if given is None and method == "POST" and path in KEY_IN_BODY:
            context.owes_key = True
            return
        _let_in(self._by.api_keys, given, role, context)

    async def _answer(self, answering: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; replace a large answer by 503 if too many bytes already wait to be read."""
        refusal: ServiceError | None = None

        async def send_out(message: Message) -> None:
            nonlocal refusal
            if message["type"] == "http.response.start" and not _has_room(scope, message):
                refusal = self._too_much_unsent()
            if refusal is None:
                await send(message)

        await answering(scope, receive, send_out)
        if refusal is not None:
            await self._render(Request(scope), refusal)(scope, receive, send)

    def _too_much_unsent(self) -> ServiceError:
        limit = self._by.settings.max_unsent_bytes
        return TooMuchUnsent(
            f"answers that clients have not read yet may have {limit} bytes in total; read the "
            "open answers, or ask for a smaller one",
            headers={"Retry-After": "1"},
        )

    def _ended(
        self, scope: Scope, method: str, status: int, context: RequestContext, span: Span
    ) -> None:
        """Count, log and trace a request that has been answered."""
        route = getattr(scope.get("route"), "path", "other")
        spent_s = time.monotonic() - context.began_at
        self._by.metrics.ended(route, status, spent_s, context.outcome)
        name = f"{method} {route}" if route != "other" else "other"
        times: dict[str, Any] = {"queue_s": context.queue_s, "engine_s": context.engine_s}
        span.end(name, status, {"http.route": route, "unroll.client": context.client, **times})
        if self._by.settings.log_requests:
            # Health checks, scrapes and 429s log at DEBUG; metrics cover them.
            is_quiet = route in HEALTH or route == "/metrics" or status == QueueFull.status
            level = logging.DEBUG if is_quiet else logging.INFO
            fields = {
                "method": method if route != "other" else "",
                "route": route,
                "status": status,
                "seconds": round(spent_s, 6),
                "outcome": context.outcome,
                "client": context.client,
                **{key: round(value, 6) for key, value in times.items()},
            }
            logger.log(level, "%s %d in %.1f ms", name, status, 1e3 * spent_s, extra=fields)


def admit(request: Request, key: str | None) -> None:
    """Let in a request that was let through for the key in its body. Raises Unauthorized."""
    context = current_request()
    if context.owes_key:
        _let_in(request.app.state.api_keys, key, "use", context)
        context.owes_key = False


def _draining() -> Draining:
    again = {"Retry-After": "1", "Connection": "close"}
    return Draining("the server is shutting down; try again", headers=again)


def _let_in(keys: Sequence[ApiKey], given: str | None, role: Role, context: RequestContext) -> None:
    """Check the API key and note its client. Raises Unauthorized and Forbidden."""
    key = None if given is None else known_key(keys, given)
    if key is None:
        challenge = {"WWW-Authenticate": "Bearer"}
        raise Unauthorized("send a known key: Authorization: Bearer <key>", headers=challenge)
    context.client = key.name
    if not key.allows(role):
        raise Forbidden(f"this takes a key with the role {role}")


def _normalize_path(scope: Scope, root_path: str) -> None:
    """Remove the prefix of a proxy and a slash at the end from the path.

    The pages use relative references; `unroll.base` is what these then lack.
    """
    asked: str = scope["path"]
    path = asked
    if root_path and path == root_path:
        path = "/"
        scope["unroll.base"] = f"{root_path.rpartition('/')[2]}/"
    elif root_path and path.startswith(f"{root_path}/"):
        path = path.removeprefix(root_path)
    if path != "/" and path.endswith("/"):
        path = path[:-1]
        scope["unroll.base"] = "../"
    if path != asked:
        scope["path"] = path
        scope["raw_path"] = quote(path).encode("ascii")


def _has_room(scope: Scope, message: Message) -> bool:
    """Whether an answer that begins with this message is small or has room to wait."""
    length = Headers(raw=message["headers"]).get("content-length", "0")
    asked: Callable[[int], bool] | None = scope.get("unroll.has_room")
    return int(length) <= SMALL_BYTES or asked is None or asked(int(length))


def _request_id(headers: Headers) -> str:
    """The client's X-Request-Id if it is harmless, else a new id."""
    given = headers.getlist("x-request-id")
    if len(given) == 1 and REQUEST_ID.fullmatch(given[0]):
        return given[0]
    return fresh_id(16)


def _host(headers: Headers) -> str:
    """The name in Host without the port; empty if Host is malformed (RFC 9110, 7.2)."""
    found = _HOST.fullmatch(headers.get("host", "").lower())
    return "" if found is None else found[1] or found[2]


def _role_of(path: str) -> Role:
    if path == "/admin" or path.startswith("/admin/"):
        return "admin"
    return "metrics" if path == "/metrics" else "use"


def _given_key(headers: Headers) -> str | None:
    """The API key of a request, from Authorization (as OpenAI's clients) or from X-Api-Key."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return headers.get("x-api-key")


def _timeout_s(headers: Headers) -> float | None:
    given = headers.get("x-request-timeout")
    if given is None:
        return None
    # Plain decimals only: float() also accepts "nan", "1e9" and digits of other scripts.
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", given) or not float(given):
        raise InvalidRequest("X-Request-Timeout must be a number of seconds above 0, such as 2.5")
    return float(given)


def _add_headers(message: Message, context: RequestContext) -> None:
    headers = MutableHeaders(raw=message["headers"])
    headers["X-Request-Id"] = context.request_id
    for name, value in SECURITY_HEADERS.items():
        headers.setdefault(name, value)
    # Milliseconds spent before the first byte (W3C Server Timing).
    parts = {"total": time.monotonic() - context.began_at}
    if context.engine_s:
        parts = {"queue": context.queue_s, "engine": context.engine_s, **parts}
    timing = ", ".join(f"{name};dur={1e3 * seconds:.3f}" for name, seconds in parts.items())
    headers["Server-Timing"] = timing
