"""The tree of exceptions, made from the service's problem documents (RFC 9457)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class FieldError:
    """One mistake in a request."""

    pointer: str  # a JSON pointer into the body
    detail: str  # what is allowed there


class UnrollError(Exception):
    """Base of all exceptions. `status` is the HTTP status; None if there was no answer."""

    status: int | None = None

    def __init__(
        self,
        detail: str,
        *,
        status: int | None = None,
        errors: tuple[FieldError, ...] = (),
        retry_after_s: float | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.status = status
        self.errors = errors
        self.retry_after_s = retry_after_s
        self.request_id = request_id


class InvalidRequest(UnrollError):
    """400, 413, 415 and 422: the request is invalid; `errors` points at its fields."""


class NotAllowed(UnrollError):
    """401, 403 and 421: an unknown API key, a key without this right, or a wrong host."""


class NotFound(UnrollError):
    """404: no served model has that name."""


class Overloaded(UnrollError):
    """429 and 503: try again later; `retry_after_s` says when."""


class ServerError(UnrollError):
    """500 and 504, and answers that are not from an Unroll service."""


class ConnectionFailed(UnrollError):
    """There was no answer, or only part of one."""


_KINDS: dict[int, type[UnrollError]] = {
    400: InvalidRequest,
    401: NotAllowed,
    403: NotAllowed,
    404: NotFound,
    413: InvalidRequest,
    415: InvalidRequest,
    421: NotAllowed,
    422: InvalidRequest,
    429: Overloaded,
    503: Overloaded,
}


def error_of(status: int, problem: Any, headers: Mapping[str, str]) -> UnrollError:
    """The exception for an error answer; `problem` is its JSON, or None."""
    problem = problem if isinstance(problem, dict) else {}
    retry_after = headers.get("retry-after", "")
    return _KINDS.get(status, ServerError)(
        str(problem.get("detail") or f"the server answered {status}"),
        status=status,
        errors=tuple(
            FieldError(str(x.get("pointer", "")), str(x.get("detail", "")))
            for x in problem.get("errors", ())
        ),
        retry_after_s=float(retry_after) if retry_after.isdecimal() else None,
        request_id=str(problem.get("request_id") or headers.get("x-request-id", "")),
    )
