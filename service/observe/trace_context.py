"""W3C Trace Context: which trace a request belongs to (https://www.w3.org/TR/trace-context/)."""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from starlette.datastructures import Headers

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True, slots=True)
class TraceParent:
    """What the caller says of the trace."""

    trace_id: str  # 32 hexadecimal digits
    parent_id: str  # 16


class Span(Protocol):
    """The time of one request in a trace."""

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits."""

    @property
    def span_id(self) -> str:
        """16."""

    def end(self, name: str, status: int, attributes: Mapping[str, str | float]) -> None:
        """The request was answered; `name` is its method and route."""


class Tracer(Protocol):
    """Begins spans, and sends them somewhere or nowhere."""

    def begin(self, headers: Headers) -> Span:
        """The span of a request, in its caller's trace or a new one."""

    def close(self) -> None:
        """Send what has not been sent."""


@dataclass(frozen=True, slots=True)
class LoggedSpan:
    """A span that is told in logs alone."""

    trace_id: str
    span_id: str

    def end(self, name: str, status: int, attributes: Mapping[str, str | float]) -> None:
        """Nothing is sent."""


class LoggingTracer:
    """Keeps the callers' traces, so that logs can be joined to them."""

    def begin(self, headers: Headers) -> Span:
        """A span of the caller's trace, or of a new one."""
        parent = parse_traceparent(headers.getlist("traceparent"))
        trace_id = fresh_id(16) if parent is None else parent.trace_id
        return LoggedSpan(trace_id, fresh_id(8))

    def close(self) -> None:
        """Nothing is held."""


def fresh_id(size_bytes: int) -> str:
    """A random id in hexadecimal digits, which tells requests apart and is no secret.

    Not from the system: that call lets go of Python's lock, and to get it back from an engine's
    thread takes longer than all the rest.
    """
    return f"{random.getrandbits(8 * size_bytes):0{2 * size_bytes}x}"


def parse_traceparent(values: Sequence[str]) -> TraceParent | None:
    """The header's content; None where it is not there once, and as the specification has it."""
    if len(values) != 1:
        return None
    match = _TRACEPARENT.fullmatch(values[0].strip())
    if match is None:
        return None
    version, trace_id, parent_id, _, rest = match.groups()
    # Later versions may append fields; this one has none, and `ff` is no version.
    if version == "ff" or (version == "00" and rest):
        return None
    if set(trace_id) == {"0"} or set(parent_id) == {"0"}:
        return None
    return TraceParent(trace_id, parent_id)
