"""The OpenAPI document: complete, committed, and true to what the service answers."""

import json
from typing import Any

import pytest

from service.app import create_app
from service.settings import Settings
from tests import examples
from tests.end_to_end.server import ROOT


@pytest.fixture(scope="module")
def document() -> Any:
    return create_app(Settings(), []).openapi()


def operations(document: Any) -> list[tuple[str, Any]]:
    return [
        (f"{method.upper()} {path}", operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def test_the_committed_document_is_the_services(document: Any) -> None:
    committed = json.loads((ROOT / "openapi.json").read_text("utf-8"))
    assert committed == json.loads(json.dumps(document)), "run `make openapi.json`"


def test_every_status_of_every_operation_has_an_example(document: Any) -> None:
    lacking = [
        f"{name} {status} {media_type}"
        for name, operation in operations(document)
        for status, response in operation["responses"].items()
        for media_type, content in response.get("content", {}).items()
        if "example" not in content and "examples" not in content
    ]
    assert not lacking


def test_every_body_has_an_example(document: Any) -> None:
    for name, operation in operations(document):
        for content in operation.get("requestBody", {"content": {}})["content"].values():
            assert "example" in content, name


def test_the_examples_are_what_the_shipped_bundles_answer() -> None:
    assert examples.FILE.read_text("utf-8") == examples.written(), "run `make openapi.json`"
