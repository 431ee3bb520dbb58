"""Every error a client can see, mapped to HTTP in one place.

    ServiceError
    ├── BadRequest 400            the body is not JSON
    ├── Unauthorized 401          no API key, or none that is known
    ├── Forbidden 403             the key is not for this
    ├── ModelNotFound 404
    ├── NotOffered 404            a part of another server's interface that is not here
    ├── ReceiptTimeout 408        the head or the body came too slowly
    ├── BundleUnusable 409        what was to be loaded cannot be
    ├── SeveralProcesses 409      a change that one of several processes would make alone
    ├── BodyTooLarge 413
    ├── UrlTooLong 414
    ├── UnsupportedMediaType 415
    ├── HostNotAllowed 421        Host names none of ours
    ├── InvalidRequest 422        schema and limits; `errors` points at the fields
    ├── QueueFull 429             with Retry-After
    ├── HeadersTooLarge 431
    ├── ClientGone 499            nobody reads it; it stands in the log
    ├── ModelFailure 500          the model run raised, or gave NaN
    ├── EngineStopped 503         with Retry-After
    ├── Draining 503              with Retry-After
    ├── TooManyConnections 503    with Retry-After
    ├── TooMuchUnsent 503         with Retry-After
    └── DeadlineExceeded 504

Messages say what was wrong and what is allowed. They never hold what the client sent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class FieldError:
    """One mistake in the body: where, as a JSON pointer (RFC 6901), and what is allowed."""

    pointer: str
    detail: str


class ServiceError(Exception):
    """Base of all: an HTTP status, a stable `type` and a message for people."""

    status: ClassVar[int]
    type: ClassVar[str]
    title: ClassVar[str]

    def __init__(
        self,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = dict(headers or {})


class BadRequest(ServiceError):
    """The body is not JSON."""

    status, type, title = 400, "bad-request", "Bad request"


class Unauthorized(ServiceError):
    """There is no API key in the request, or none that is known."""

    status, type, title = 401, "unauthorized", "Unauthorized"


class Forbidden(ServiceError):
    """The API key is known, and not for this."""

    status, type, title = 403, "forbidden", "Forbidden"


class ModelNotFound(ServiceError):
    """No served model has that name."""

    status, type, title = 404, "model-not-found", "Model not found"


class NotOffered(ServiceError):
    """A part of another server's interface that this one does not have."""

    status, type, title = 404, "not-offered", "Not offered"


class ReceiptTimeout(ServiceError):
    """The request came too slowly."""

    status, type, title = 408, "receipt-timeout", "Receipt timeout"


class BundleUnusable(ServiceError):
    """A bundle cannot be served; what was served before goes on."""

    status, type, title = 409, "bundle-unusable", "Bundle unusable"


class SeveralProcesses(ServiceError):
    """The change would reach one server process of several."""

    status, type, title = 409, "several-processes", "Several processes"


class BodyTooLarge(ServiceError):
    """The body is over the limit."""

    status, type, title = 413, "body-too-large", "Body too large"


class UrlTooLong(ServiceError):
    """The URL is over the limit."""

    status, type, title = 414, "url-too-long", "URL too long"


class UnsupportedMediaType(ServiceError):
    """The body is not `application/json`, or is compressed."""

    status, type, title = 415, "unsupported-media-type", "Unsupported media type"


class HostNotAllowed(ServiceError):
    """The request is for another server, as its Host says (RFC 9110, 15.5.20)."""

    status, type, title = 421, "host-not-allowed", "Host not allowed"


class InvalidRequest(ServiceError):
    """The body is JSON, but not a request that can be answered."""

    status, type, title = 422, "invalid-request", "Invalid request"

    @classmethod
    def at(cls, pointer: str, detail: str) -> "InvalidRequest":
        """One mistake in one field."""
        return cls(detail, errors=[FieldError(pointer, detail)])


class QueueFull(ServiceError):
    """There is no room for the request now."""

    status, type, title = 429, "queue-full", "Queue full"


class HeadersTooLarge(ServiceError):
    """The headers are over the limit."""

    status, type, title = 431, "headers-too-large", "Headers too large"


class ClientGone(ServiceError):
    """The client closed the connection before it had its answer."""

    status, type, title = 499, "client-gone", "Client gone"


class ModelFailure(ServiceError):
    """The model run failed for this request; others went on."""

    status, type, title = 500, "model-failure", "Model failure"


class EngineStopped(ServiceError):
    """The engine is not running: starting, draining or dead."""

    status, type, title = 503, "engine-stopped", "Engine stopped"


class Draining(ServiceError):
    """The server is about to end, and takes nothing new."""

    status, type, title = 503, "draining", "Draining"


class TooManyConnections(ServiceError):
    """The server holds as many connections as it may."""

    status, type, title = 503, "too-many-connections", "Too many connections"


class TooMuchUnsent(ServiceError):
    """Answers that wait for their clients to read them fill the room that there is for them."""

    status, type, title = 503, "too-much-unsent", "Too much unsent"


class DeadlineExceeded(ServiceError):
    """The request took longer than the server allows; its rows are free again."""

    status, type, title = 504, "deadline-exceeded", "Deadline exceeded"
