"""Where every request comes in and every answer goes out: who asks, until when, what came of it.

Around the application and inside nothing: what is refused here costs no more than its head.
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
from service.scheduling.workers import DETAILS_IN_HAND
from service.settings import Settings
from service.tasks.registry import ModelRegistry

# What anybody may ask for, at any time: whether the server is there, and the page, which holds
# nothing that is not in the repository. Everything else needs a key where there are keys.
HEALTH = frozenset({"/livez", "/readyz", "/v2/health/live", "/v2/health/ready"})
_HOST = re.compile(r"(?:\[([^\[\]]+)\]|([^:\[\]]*))(?::[0-9]*)?")
# LibreTranslate's clients ask for the languages without a key.
_LIBRETRANSLATE = "/libretranslate"
PUBLIC = HEALTH | {
    *("/", "/docs", "/openapi.json"),
    *(f"{_LIBRETRANSLATE}/{name}" for name in ("languages", "frontend/settings", "health")),
}
# Paths whose clients may have their key in the body: the route calls `admit` with it.
KEY_IN_BODY = frozenset({f"{_LIBRETRANSLATE}/translate", f"{_LIBRETRANSLATE}/detect"})
PUBLIC_FOLDER = "/page/"

# Answers are data: no browser may take them for anything else, show them in a frame or keep them.
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}

Render: TypeAlias = Callable[[Request, ServiceError], Response]

# Answers of this size always go out.
SMALL_BYTES = 64 * 1024

# The ids that a client may give its requests.
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

logger = logging.getLogger("service.requests")


@dataclass(frozen=True, slots=True)
class Doorkeeping:
    """What the gateway goes by. `api_keys` None asks for none."""

    settings: Settings
    api_keys: Sequence[ApiKey] | None
    registry: ModelRegistry
    lifecycle: Lifecycle
    metrics: Metrics
    tracer: Tracer

    @classmethod
    def of(cls, state: State) -> "Doorkeeping":
        """The application's."""
        return cls(
            state.settings,
            state.api_keys,
            state.registry,
            state.lifecycle,
            state.metrics,
            state.tracer,
        )


class Gateway:
    """Gives every request an id, a trace and a time; admits it or not; counts and logs its end."""

    def __init__(self, app: ASGIApp, *, doorkeeping: Doorkeeping, render: Render) -> None:
        self._app = app
        self._by = doorkeeping
        self._render = render
        self._details = ByteBudget(DETAILS_IN_HAND * doorkeeping.settings.max_details)
        self._building = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and what answers it back (ASGI 3)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        _normalize_path(scope, self._by.settings.root_path)
        is_head = scope["method"] == "HEAD"
        if is_head:
            # Answered as GET, without the body. A copy: the server goes by its own.
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
        status, has_begun = 500, False  # of an answer that does not come

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
            # At the end of the grace: told, where nothing has been answered yet.
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
        """What answers: the application, or a refusal."""
        try:
            self._check(scope["method"], scope["path"], headers, context)
        except ServiceError as error:
            return self._render(Request(scope), error)
        return self._app

    def _check(self, method: str, path: str, headers: Headers, context: RequestContext) -> None:
        """Raise the error of a request that is not let in, and note who asks."""
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
        # Streams wait for a place, and loading a model needs none.
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
        """Answer; where what comes is large and too much waits to be read already, refuse."""
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
            f"answers of {limit} bytes in all may wait to be read; read them, or ask for less",
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
            # Of what is asked all the time, and of a flood, the numbers tell enough.
            is_quiet = route in HEALTH or route == "/metrics" or status == QueueFull.status
            level = logging.DEBUG if is_quiet else logging.INFO
            told = {
                "method": method if route != "other" else "",
                "route": route,
                "status": status,
                "seconds": round(spent_s, 6),
                "outcome": context.outcome,
                "client": context.client,
                **{key: round(value, 6) for key, value in times.items()},
            }
            logger.log(level, "%s %d in %.1f ms", name, status, 1e3 * spent_s, extra=told)


def admit(request: Request, key: str | None) -> None:
    """Let in a request that was let through for the key in its body. Raises Unauthorized."""
    context = current_request()
    if context.owes_key:
        _let_in(request.app.state.api_keys, key, "use", context)
        context.owes_key = False


def _draining() -> Draining:
    again = {"Retry-After": "1", "Connection": "close"}
    return Draining("the server is about to end; ask again", headers=again)


def _let_in(keys: Sequence[ApiKey], given: str | None, role: Role, context: RequestContext) -> None:
    """Note whose key it is. Raises Unauthorized and Forbidden."""
    key = None if given is None else known_key(keys, given)
    if key is None:
        challenge = {"WWW-Authenticate": "Bearer"}
        raise Unauthorized("send a known key: Authorization: Bearer <key>", headers=challenge)
    context.client = key.name
    if not key.allows(role):
        raise Forbidden(f"this takes a key with the role {role}")


def _normalize_path(scope: Scope, root_path: str) -> None:
    """Take the prefix that a proxy has left, and a slash at the end, off the path.

    The pages' references are relative; `unroll.base` is what they then lack.
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
    """Whether an answer that begins like this may wait for its client, if it is large."""
    length = Headers(raw=message["headers"]).get("content-length", "0")
    asked: Callable[[int], bool] | None = scope.get("unroll.has_room")
    return int(length) <= SMALL_BYTES or asked is None or asked(int(length))


def _request_id(headers: Headers) -> str:
    """The client's id where it is harmless, else one of ours."""
    given = headers.getlist("x-request-id")
    if len(given) == 1 and REQUEST_ID.fullmatch(given[0]):
        return given[0]
    return fresh_id(16)


def _host(headers: Headers) -> str:
    """The name in Host, without its port; what is not in that form is no name (RFC 9110, 7.2)."""
    found = _HOST.fullmatch(headers.get("host", "").lower())
    return "" if found is None else found[1] or found[2]


def _role_of(path: str) -> Role:
    if path == "/admin" or path.startswith("/admin/"):
        return "admin"
    return "metrics" if path == "/metrics" else "use"


def _given_key(headers: Headers) -> str | None:
    """The key of a request, as OpenAI's clients send it or in a header of its own."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return headers.get("x-api-key")


def _timeout_s(headers: Headers) -> float | None:
    given = headers.get("x-request-timeout")
    if given is None:
        return None
    # Plain decimals: float() takes "nan", "1e9" and digits of other scripts, too.
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", given) or not float(given):
        raise InvalidRequest("X-Request-Timeout is a number of seconds above 0, such as 2.5")
    return float(given)


def _add_headers(message: Message, context: RequestContext) -> None:
    headers = MutableHeaders(raw=message["headers"])
    headers["X-Request-Id"] = context.request_id
    for name, value in SECURITY_HEADERS.items():
        headers.setdefault(name, value)
    # Milliseconds (W3C Server Timing): what came before the first byte.
    parts = {"total": time.monotonic() - context.began_at}
    if context.engine_s:
        parts = {"queue": context.queue_s, "engine": context.engine_s, **parts}
    told = ", ".join(f"{name};dur={1e3 * seconds:.3f}" for name, seconds in parts.items())
    headers["Server-Timing"] = told
