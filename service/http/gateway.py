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
from typing import Any
from urllib.parse import quote

from starlette.datastructures import State
from starlette.requests import Request
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
from service.http.direct import Render
from service.http.heads import header, headers
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
_SECURITY = [(k.lower().encode("ascii"), v.encode("ascii")) for k, v in SECURITY_HEADERS.items()]

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
        self._hosts = doorkeeping.settings.hosts
        self._render = render
        self._details = ByteBudget(DETAILS_IN_HAND * doorkeeping.settings.max_details)
        self._building = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request to the application and its answer to the server (ASGI 3)."""
        _normalize_path(scope, self._by.settings.root_path)
        method = scope["method"]
        if method == "HEAD":
            # Answered as GET, without the body. A copy, since the server still reads its own scope.
            scope = {**scope, "method": "GET", "unroll.has_room": None}
        span = self._by.tracer.begin(scope)
        context = RequestContext(
            request_id=_request_id(scope),
            trace_id=span.trace_id,
            span_id=span.span_id,
            details=self._details,
            building=self._building,
        )
        enter_request(context)
        scope["unroll.request_id"] = context.request_id
        answer = _Answer(send, scope, context, is_head=method == "HEAD")
        lifecycle = self._by.lifecycle
        try:
            with lifecycle.request():
                await self._answer(scope, receive, answer, context)
        except asyncio.CancelledError:
            # The grace time is over: answer 503, unless an answer has begun.
            if not lifecycle.is_cut:
                raise
            context.outcome = Draining.type
            if not answer.has_begun:
                await self._render(Request(scope), _draining())(scope, receive, answer.send)
        finally:
            context.release()
            self._ended(scope, method, answer.status, context, span)

    async def _answer(
        self, scope: Scope, receive: Receive, answer: "_Answer", context: RequestContext
    ) -> None:
        """Answer; replace a large answer by 503 if too many bytes already wait to be read."""
        try:
            self._check(scope, context)
        except ServiceError as error:
            await self._render(Request(scope), error)(scope, receive, answer.send)
            return
        await self._app(scope, receive, answer.send)
        if answer.lacks_room:
            refused = self._render(Request(scope), self._too_much_unsent())
            answer.begin_again()
            await refused(scope, receive, answer.send)

    def _check(self, scope: Scope, context: RequestContext) -> None:
        """Raise the error of a request that is not admitted; note the client and its timeout."""
        method, path = scope["method"], scope["path"]
        if path in HEALTH:
            return
        if self._hosts is not None and _host(scope) not in self._hosts:
            raise HostNotAllowed("this server answers for other names; see UNROLL_ALLOWED_HOSTS")
        if path not in PUBLIC and not path.startswith(PUBLIC_FOLDER):
            self._check_key(scope, context)
        if self._by.lifecycle.phase == "draining" and path != "/metrics":
            # If the connection was new or in use, the client could not know.
            idle_since = scope.get("unroll.idle_since", 0.0)
            if idle_since is not None and idle_since < self._by.lifecycle.draining_since:
                raise _draining()
        context.timeout_s = _timeout_s(scope)
        # Streams wait for a place in the queue instead, and loading a model needs none.
        is_json = header(scope, b"content-type").startswith("application/json")
        if method == "POST" and is_json and not path.startswith("/admin/"):
            self._by.registry.refuse_if_full(context.client)

    def _check_key(self, scope: Scope, context: RequestContext) -> None:
        path = scope["path"]
        role = _role_of(path)
        if self._by.api_keys is None:
            if role == "admin":
                raise Forbidden("no admin key is configured; see UNROLL_API_KEYS_FILE")
            return
        given = _given_key(scope)
        if given is None and scope["method"] == "POST" and path in KEY_IN_BODY:
            context.owes_key = True
            return
        _let_in(self._by.api_keys, given, role, context)

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
        # Health checks, scrapes and 429s log at DEBUG; metrics cover them.
        is_quiet = route in HEALTH or route == "/metrics" or status == QueueFull.status
        level = logging.DEBUG if is_quiet else logging.INFO
        if self._by.settings.log_requests and logger.isEnabledFor(level):
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


def _request_id(scope: Scope) -> str:
    """The client's X-Request-Id if it is harmless, else a new id."""
    given = headers(scope, b"x-request-id")
    if len(given) == 1 and REQUEST_ID.fullmatch(given[0]):
        return given[0]
    return fresh_id(16)


def _host(scope: Scope) -> str:
    """The name in Host without the port; empty if Host is malformed (RFC 9110, 7.2)."""
    found = _HOST.fullmatch(header(scope, b"host").lower())
    return "" if found is None else found[1] or found[2]


def _role_of(path: str) -> Role:
    if path == "/admin" or path.startswith("/admin/"):
        return "admin"
    return "metrics" if path == "/metrics" else "use"


def _given_key(scope: Scope) -> str | None:
    """The API key of a request, from Authorization (as OpenAI's clients) or from X-Api-Key."""
    scheme, _, key = header(scope, b"authorization").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return next(iter(headers(scope, b"x-api-key")), None)


def _timeout_s(scope: Scope) -> float | None:
    given = next(iter(headers(scope, b"x-request-timeout")), None)
    if given is None:
        return None
    # Plain decimals only: float() also accepts "nan", "1e9" and digits of other scripts.
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", given) or not float(given):
        raise InvalidRequest("X-Request-Timeout must be a number of seconds above 0, such as 2.5")
    return float(given)


class _Answer:
    """What is sent in answer to a request: with the gateway's headers, and counted."""

    __slots__ = ("_context", "_is_head", "_room", "_send", "has_begun", "lacks_room", "status")

    def __init__(self, send: Send, scope: Scope, context: RequestContext, *, is_head: bool) -> None:
        self._send = send
        self._room: Callable[[int], bool] | None = scope.get("unroll.has_room")
        self._context = context
        self._is_head = is_head
        self.status = 500  # if no answer comes
        self.has_begun = False
        self.lacks_room = False  # it was too large to wait for its client, and so was not sent

    def begin_again(self) -> None:
        """Send another answer instead."""
        self.lacks_room = False
        self._room = None

    async def send(self, message: Message) -> None:
        """Send a message to the server (ASGI 3)."""
        if message["type"] == "http.response.start":
            if not self._has_room(message):
                self.lacks_room = True
                return
            self.status, self.has_begun = message["status"], True
            _add_headers(message, self._context)
        elif self.lacks_room:
            return
        elif self._is_head:
            if message.get("more_body", False):
                return
            message = {**message, "body": b""}
        await self._send(message)

    def _has_room(self, message: Message) -> bool:
        """Whether an answer that begins with this message is small or has room to wait."""
        if self._room is None:
            return True
        for name, value in message["headers"]:
            if name == b"content-length":
                length = int(value)
                return length <= SMALL_BYTES or self._room(length)
        return True


def _add_headers(message: Message, context: RequestContext) -> None:
    added: list[tuple[bytes, bytes]] = message["headers"]
    given = {name for name, _ in added}
    added.append((b"x-request-id", context.request_id.encode("ascii")))
    added += [each for each in _SECURITY if each[0] not in given]
    # Milliseconds spent before the first byte (W3C Server Timing).
    total_ms = 1e3 * (time.monotonic() - context.began_at)
    timing = f"total;dur={total_ms:.3f}"
    if context.engine_s:
        queue_ms, engine_ms = 1e3 * context.queue_s, 1e3 * context.engine_s
        timing = f"queue;dur={queue_ms:.3f}, engine;dur={engine_ms:.3f}, {timing}"
    added.append((b"server-timing", timing.encode("ascii")))
