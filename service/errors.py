"""Every error a client can see, mapped to HTTP in one place.

    ServiceError
    ├── BadRequest 400            the body is not JSON
    ├── Unauthorized 401          no API key, or an unknown one
    ├── Forbidden 403             the API key does not allow this request
    ├── ModelNotFound 404
    ├── NotOffered 404            a part of another server's API that this one does not have
    ├── ReceiptTimeout 408        the request's head or body arrived too slowly
    ├── BundleUnusable 409        a bundle cannot be loaded
    ├── BodyTooLarge 413
    ├── UrlTooLong 414
    ├── UnsupportedMediaType 415
    ├── HostNotAllowed 421        the Host header names another server
    ├── InvalidRequest 422        schema or limits; `errors` names the options
    ├── QueueFull 429             with Retry-After
    ├── HeadersTooLarge 431
    ├── ClientGone 499            never sent; it appears only in the log
    ├── ModelFailure 500          the model run raised or returned NaN
    ├── EngineStopped 503         with Retry-After
    ├── Draining 503              with Retry-After
    ├── ModelUnusable 503         a model cannot be opened at its first use
    ├── NoRoomForModel 503        with Retry-After
    ├── TooManyConnections 503    with Retry-After
    ├── TooMuchUnsent 503         with Retry-After
    └── DeadlineExceeded 504

Messages say what was wrong and what is allowed. They never contain what the client sent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class OptionError:
    """One mistake: which option has it, and what is allowed.

    Options have the names of the tasks' arguments and options. Each interface turns them into the
    names of its own fields (`http/option_names.py`).
    """

    option: str  # "" for the request as a whole
    detail: str
    within: tuple[int | str, ...] = ()  # the place of the mistake inside the option


class ServiceError(Exception):
    """The base class: an HTTP status, a stable `type` and a message for people."""

    status: ClassVar[int]
    type: ClassVar[str]
    title: ClassVar[str]

    def __init__(
        self,
        detail: str,
        *,
        errors: Sequence[OptionError] = (),
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
    """The request has no API key, or an unknown one."""

    status, type, title = 401, "unauthorized", "Unauthorized"


class Forbidden(ServiceError):
    """The API key is known but does not allow this request."""

    status, type, title = 403, "forbidden", "Forbidden"


class ModelNotFound(ServiceError):
    """No served model has that name."""

    status, type, title = 404, "model-not-found", "Model not found"


class NotOffered(ServiceError):
    """A part of another server's API that this one does not have."""

    status, type, title = 404, "not-offered", "Not offered"


class ReceiptTimeout(ServiceError):
    """The head or the body of the request arrived too slowly."""

    status, type, title = 408, "receipt-timeout", "Receipt timeout"


class BundleUnusable(ServiceError):
    """A bundle cannot be served; the models served before stay in service."""

    status, type, title = 409, "bundle-unusable", "Bundle unusable"


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
    """The Host header names another server (RFC 9110, 15.5.20)."""

    status, type, title = 421, "host-not-allowed", "Host not allowed"


class InvalidRequest(ServiceError):
    """The body is JSON, but not a valid request."""

    status, type, title = 422, "invalid-request", "Invalid request"

    @classmethod
    def of_option(cls, option: str, detail: str, *within: int | str) -> "InvalidRequest":
        """One mistake in one option, or at a place inside it."""
        return cls(detail, errors=[OptionError(option, detail, within)])


class QueueFull(ServiceError):
    """The queue has no room for the request now."""

    status, type, title = 429, "queue-full", "Queue full"


class HeadersTooLarge(ServiceError):
    """The headers are over the limit."""

    status, type, title = 431, "headers-too-large", "Headers too large"


class ClientGone(ServiceError):
    """The client closed the connection before its answer was sent."""

    status, type, title = 499, "client-gone", "Client gone"


class ModelFailure(ServiceError):
    """The model run failed for this request; others went on."""

    status, type, title = 500, "model-failure", "Model failure"


class EngineStopped(ServiceError):
    """The engine is not running: it is starting, stopping or dead."""

    status, type, title = 503, "engine-stopped", "Engine stopped"


class Draining(ServiceError):
    """The server is shutting down and takes no new requests."""

    status, type, title = 503, "draining", "Draining"


class ModelUnusable(ServiceError):
    """The model's bundle could not be opened at its first use."""

    status, type, title = 503, "model-unusable", "Model unusable"


class NoRoomForModel(ServiceError):
    """The models in use leave no room to open another one."""

    status, type, title = 503, "no-room-for-model", "No room for the model"


class TooManyConnections(ServiceError):
    """The server has reached its limit on connections."""

    status, type, title = 503, "too-many-connections", "Too many connections"


class TooMuchUnsent(ServiceError):
    """Answers that clients have not read fill the memory set aside for them."""

    status, type, title = 503, "too-much-unsent", "Too much unsent"


class DeadlineExceeded(ServiceError):
    """The request took longer than the server allows; its rows have been freed."""

    status, type, title = 504, "deadline-exceeded", "Deadline exceeded"
