"""The OpenAPI document: what FastAPI finds in the routes, with an example of every answer.

`examples.json` has requests to the shipped bundles and what they answer. It is written by
`python -m tests.examples` and held to the service by a test.
"""

import json
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

_EXAMPLES: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "examples.json").read_text("utf-8")
)
_PROBLEM = "application/problem+json"


def document(app: FastAPI) -> dict[str, Any]:
    """The document, made once."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title, version=app.version, summary=app.summary, routes=app.routes
        )
        for path, operations in schema["paths"].items():
            for method, operation in operations.items():
                _add_examples(operation, _EXAMPLES.get(f"{method.upper()} {path}", {}))
        app.openapi_schema = schema
    return app.openapi_schema


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
        if answers and "application/json" not in answers and "application/json" in contents:
            # What FastAPI takes for the answer is an event of it.
            event = contents.pop("application/json")
            contents.update({media_type: dict(event) for media_type in answers})
        for media_type, example in answers.items():
            contents.setdefault(media_type, {})["example"] = example
