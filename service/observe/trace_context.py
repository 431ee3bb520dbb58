"""W3C Trace Context: the trace that a request belongs to (https://www.w3.org/TR/trace-context/)."""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from starlette.types import Scope

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True, slots=True)
class TraceParent:
    """The caller's trace and span, from `traceparent`."""

    trace_id: str  # 32 hexadecimal digits
    parent_id: str  # 16


class Span(Protocol):
    """One request in a trace."""

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits."""

    @property
    def span_id(self) -> str:
        """16 hexadecimal digits."""

    def end(self, name: str, status: int, attributes: Mapping[str, str | float]) -> None:
        """End the span of an answered request; `name` is its method and route."""


class Tracer(Protocol):
    """Begins a span for each request; where they are sent, if anywhere, is its own affair."""

    def begin(self, scope: Scope) -> Span:
        """Begin the span of a request, in the caller's trace or in a new one."""

    def start(self) -> None:
        """Begin; called in the process that serves."""

    def close(self) -> None:
        """Send the spans that are left."""


@dataclass(frozen=True, slots=True)
class LoggedSpan:
    """A span whose ids appear in logs only."""

    trace_id: str
    span_id: str

    def end(self, name: str, status: int, attributes: Mapping[str, str | float]) -> None:
        """Do nothing: the span is not sent anywhere."""


class LoggingTracer:
    """Sends no spans, but keeps the callers' trace ids, so that logs can be joined by them."""

    def begin(self, scope: Scope) -> Span:
        """Begin a span in the caller's trace, or in a new one."""
        given = [value for name, value in scope["headers"] if name == b"traceparent"]
        parent = parse_traceparent([value.decode("latin-1") for value in given])
        trace_id = fresh_id(16) if parent is None else parent.trace_id
        return LoggedSpan(trace_id, fresh_id(8))

    def start(self) -> None:
        """Begin; called in the process that serves."""

    def close(self) -> None:
        """Do nothing: no spans are held."""


def fresh_id(size_bytes: int) -> str:
    """A random id in hexadecimal digits. It distinguishes requests and is not a secret.

    Not from the operating system: that call releases the GIL, and getting it back from an engine's
    thread takes longer than everything else.
    """
    return f"{random.getrandbits(8 * size_bytes):0{2 * size_bytes}x}"


def parse_traceparent(values: Sequence[str]) -> TraceParent | None:
    """The parsed header; None unless there is exactly one and it is valid."""
    if len(values) != 1:
        return None
    match = _TRACEPARENT.fullmatch(values[0].strip())
    if match is None:
        return None
    version, trace_id, parent_id, _, rest = match.groups()
    # Later versions may append fields, version 00 has no others, and `ff` is not a version.
    if version == "ff" or (version == "00" and rest):
        return None
    if set(trace_id) == {"0"} or set(parent_id) == {"0"}:
        return None
    return TraceParent(trace_id, parent_id)
