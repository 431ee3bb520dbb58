"""The OpenAPI document: FastAPI's document of the routes, plus an example of every answer.

`examples.json` has requests to the shipped bundles and their answers. `python -m tests.examples`
writes it, and a test compares it with the service.
"""

import json
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.http.gateway import REQUEST_ID

_EXAMPLES: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "examples.json").read_text("utf-8")
)
_PROBLEM = "application/problem+json"
_DESCRIPTION = (
    "Besides what each operation documents, any request may be answered with a problem document "
    "(`application/problem+json`) before an operation sees it: 400 (not HTTP/1.1), 408 (it arrived "
    "too slowly), 414 and 431 (its URL or its headers are over the limit), 503 (too many "
    "connections)."
)
# Published schema names, which generated clients depend on, by the name of the class.
_PUBLISHED = {
    "EncoderDecoderDataSource": "PairSource",
    "EncoderDecoderLimits": "PairLimits",
    "EncoderDecoderMeasurement": "PairMeasurement",
    "EncoderDecoderMetrics": "PairMetrics",
    "LanguageModelDataSource": "DataSource",
    "LanguageModelLimits": "Limits",
    "LanguageModelMeasurement": "Measurement",
    "LanguageModelMetrics": "Metrics",
    "LanguageModelShape": "ModelShape",
}
_ID_NAME = "X-Request-Id"
_REQUEST_ID = {
    "description": "The id that the request sent, if it is harmless, or else a new one.",
    "required": True,
    "schema": {"type": "string", "pattern": f"^{REQUEST_ID.pattern}$"},
}


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document; it is built once."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title,
            version=app.version,
            summary=app.summary,
            description=_DESCRIPTION,
            routes=app.routes,
            # Relative to this document, so that it works behind any proxy.
            servers=[{"url": app.state.settings.root_path or "."}],
        )
        for path, operations in schema["paths"].items():
            for method, operation in operations.items():
                _leave_out_fastapis_errors(operation)
                _add_examples(operation, _EXAMPLES.get(f"{method.upper()} {path}", {}))
                for response in operation["responses"].values():
                    headers = response.get("headers", {})
                    response["headers"] = {
                        **headers,
                        _ID_NAME: {"$ref": f"#/components/headers/{_ID_NAME}"},
                    }
        schema["components"]["headers"] = {_ID_NAME: _REQUEST_ID}
        for name in ("HTTPValidationError", "ValidationError"):
            schema["components"]["schemas"].pop(name, None)
        # If keys are configured; without them, everything but /admin is open.
        schema["components"]["securitySchemes"] = {"apiKey": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{}, {"apiKey": []}]
        app.openapi_schema = _with_published_names(schema)
    return app.openapi_schema


def _with_published_names(schema: dict[str, Any]) -> dict[str, Any]:
    """The document with every class under its published name."""
    schemas = schema["components"]["schemas"]
    named = {_PUBLISHED.get(name, name): value for name, value in schemas.items()}
    schema["components"]["schemas"] = dict(sorted(named.items()))
    return {key: _renamed(value) for key, value in schema.items()}


def _renamed(value: Any) -> Any:
    if isinstance(value, list):
        return [_renamed(item) for item in value]
    if not isinstance(value, dict):
        return value
    found = {key: _renamed(item) for key, item in value.items()}
    for key in ("$ref", "title"):
        if isinstance(found.get(key), str):
            start, slash, name = found[key].rpartition("/")
            found[key] = start + slash + _PUBLISHED.get(name, name)
    return found


def _leave_out_fastapis_errors(operation: dict[str, Any]) -> None:
    """Remove the form of 422 that FastAPI documents for paths with parameters; none has it."""
    contents = operation["responses"].get("422", {}).get("content", {})
    schema = contents.get("application/json", {}).get("schema", {})
    if schema.get("$ref", "").endswith("/HTTPValidationError"):
        del operation["responses"]["422"]


def _add_examples(operation: dict[str, Any], examples: dict[str, Any]) -> None:
    if "request" in examples:
        for content in operation["requestBody"]["content"].values():
            content.setdefault("example", examples["request"])
    for status, response in operation["responses"].items():
        contents = response.get("content", {})
        if _PROBLEM in contents:
            # FastAPI adds its own media type to every model.
            contents.pop("application/json", None)
        answers = examples.get("answers", {}).get(status, {})
        for media_type, example in answers.items():
            contents.setdefault(media_type, {})["example"] = example
