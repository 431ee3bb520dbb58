"""Spans of requests, as a collector gets them over a real socket."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from service.app import create_app
from service.settings import Settings, SettingsError
from tests.fakes import AppClient

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """Takes OTLP over HTTP."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    import gzip

                    body = gzip.decompress(body)
                collector.requests.append(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nothing to standard error."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/traces"


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    serving = threading.Thread(target=made.server.serve_forever)
    serving.start()
    yield made
    made.server.shutdown()
    serving.join()
    made.server.server_close()


def test_a_request_is_a_span_of_its_callers_trace(models_dir: Path, collector: Collector) -> None:
    settings = Settings(models_dir=models_dir, otlp_endpoint=collector.url)
    with AppClient(create_app(settings)) as client:
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        body = {"model": "tiny-gru", "text": "abc"}
        assert client.post("/score", json=body, headers=headers).status_code == 200
        assert client.post("/score", json={}).status_code == 422
    # What was not sent yet is sent at the end.
    spans = [
        span
        for request in collector.requests
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    first, second = spans
    assert (first.trace_id.hex(), first.parent_span_id.hex()) == (TRACE, PARENT)
    assert (first.name, second.name) == ("POST /score", "POST /score")
    assert second.trace_id.hex() != TRACE
    told = {x.key: x.value for x in first.attributes}
    assert told["http.response.status_code"].int_value == 200
    assert told["http.route"].string_value == "/score"
    assert told["engine_s"].double_value > 0
    assert "abc" not in str(spans)


def test_a_collector_that_is_not_there_stops_nothing(models_dir: Path) -> None:
    settings = Settings(models_dir=models_dir, otlp_endpoint="http://127.0.0.1:9/v1/traces")
    with AppClient(create_app(settings)) as client:
        assert client.ask("/score", model="tiny-gru", text="abc")


def test_without_the_extra_it_is_said_what_is_missing(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "service.observe.telemetry", None)
    with pytest.raises(SettingsError, match=r"pip install '\.\[telemetry\]'"):
        create_app(Settings(models_dir=models_dir, otlp_endpoint="http://127.0.0.1:9/v1/traces"))
