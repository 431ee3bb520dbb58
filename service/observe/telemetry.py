"""OpenTelemetry: a span for every request, sent over OTLP. Needs the extra `telemetry`.

It uses the SDK directly: the instrumentation for ASGI would make a span for every message of a
stream.
"""

from collections.abc import Mapping

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span as OtelSpan
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers
from starlette.types import Scope

from service.observe.trace_context import Span


class OtlpTracer:
    """Sends spans to a collector, in batches, from a thread of the SDK."""

    def __init__(self, endpoint: str) -> None:
        resource = Resource.create({"service.name": "unroll"})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._endpoint = endpoint
        self._tracer = self._provider.get_tracer("unroll")
        self._propagator = TraceContextTextMapPropagator()

    def start(self) -> None:
        """Begin to send spans: start the SDK's thread."""
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(self._endpoint)))

    def begin(self, scope: Scope) -> Span:
        """A span in the caller's trace, or in a new one."""
        context = self._propagator.extract(dict(Headers(scope=scope)))
        return _OtlpSpan(self._tracer.start_span("HTTP", context, SpanKind.SERVER))

    def close(self) -> None:
        """Send the spans that are left, within the SDK's own timeout."""
        self._provider.shutdown()


class _OtlpSpan:
    def __init__(self, span: OtelSpan) -> None:
        self._span = span
        context = span.get_span_context()
        self.trace_id = f"{context.trace_id:032x}"
        self.span_id = f"{context.span_id:016x}"

    def end(self, name: str, status: int, attributes: Mapping[str, str | float]) -> None:
        """End the span; attributes have the names of OpenTelemetry's semantic conventions."""
        self._span.update_name(name)
        self._span.set_attributes({"http.response.status_code": status, **attributes})
        if status >= 500:
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()
