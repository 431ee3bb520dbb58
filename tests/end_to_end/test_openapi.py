"""Every operation of the OpenAPI document, asked with made-up requests: answers are as it says.

schemathesis makes the requests, good ones and bad ones, from the document, and holds each answer to
it: status, media type, headers, schema, every event and every line of a stream.
"""

import json
import string
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import CheckFunction
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from service.app import create_app
from service.bundle import write_bundle
from service.settings import Settings
from tests.bundles import ALPHABET, tiny_files, tiny_pair_files
from tests.end_to_end.server import Server, serve

# The names that the document's examples have.
WRITER, TRANSLATOR = "alice-lstm", "g2p-en"
SOURCE_LANG, TARGET_LANG = "en", "ISO 8601"
NDJSON = "application/x-ndjson"
REQUEST_TIMEOUT_S = 30.0


@schemathesis.serializer(NDJSON)
def written_lines(_: schemathesis.SerializationContext, value: Any) -> bytes:
    """A body of lines; made-up bodies that are no lists are one line."""
    if isinstance(value, str):  # an example, as it is sent
        return value.encode()
    lines = value if isinstance(value, list) else [value]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


@schemathesis.deserializer(NDJSON)
def read_lines(
    _: schemathesis.DeserializationContext, response: schemathesis.Response
) -> list[Any]:
    return [json.loads(line) for line in response.content.splitlines()]


def document() -> dict[str, Any]:
    """The service's document, with what only a server knows: the names of what it serves."""
    names = [WRITER, TRANSLATOR]
    languages = {"source": {"enum": [SOURCE_LANG, "auto"]}, "target": {"enum": [TARGET_LANG]}}
    whole: dict[str, Any] = deepcopy(create_app(Settings(), []).openapi())
    for path, operations in whole["paths"].items():
        for operation in operations.values():
            for parameter in operation.get("parameters", []):
                if parameter["name"] in {"name", "model"}:
                    parameter["schema"] = {"enum": names}
            body = operation.get("requestBody", {"content": {}})
            for content in (x.get("content", {}) for x in (body, *operation["responses"].values())):
                if NDJSON in content:
                    # Taken for a list, a stream has a schema that can be checked.
                    lines = {"type": "array", "items": content[NDJSON]["itemSchema"]}
                    content[NDJSON]["schema"] = lines
            for content in body["content"].values():
                fields = content["schema"].get("properties", {})
                if "model" in fields:
                    required = "model" in content["schema"].get("required", ())
                    fields["model"] = {"enum": names if required else [*names, None]}
                if path == "/libretranslate/translate":
                    fields.update(languages)
    return whole


schema = schemathesis.openapi.from_dict(
    document(), config=schemathesis.Config.from_dict({"seed": 1})
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("models")
    # All the ids that the examples have.
    characters = "".join(dict.fromkeys(ALPHABET + string.printable))
    write_bundle(folder, *tiny_files("lstm", name=WRITER, characters=characters))
    manifest, files = tiny_pair_files("gru", name=TRANSLATOR)
    languages = {
        "source": manifest.source.model_copy(update={"lang": SOURCE_LANG}),
        "target": manifest.target.model_copy(update={"lang": TARGET_LANG}),
    }
    write_bundle(folder, manifest.model_copy(update=languages), files)
    with serve(folder, log_level="warning") as running:
        yield running
        assert running.process.poll() is None


@schema.parametrize()
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_answers_are_as_the_document_says(case: schemathesis.Case[Any], server: Server) -> None:
    # Limits are settings, and what fields allow of each other stands in no JSON schema: a request
    # may be as the document says and be refused.
    left_out: list[CheckFunction] = [positive_data_acceptance]
    if case.media_type == NDJSON:
        # A line that is bad is told as such in its place in the answer, whose status came before.
        left_out.append(negative_data_rejection)
    case.call_and_validate(server.url, excluded_checks=left_out, timeout=REQUEST_TIMEOUT_S)


def examples() -> Iterator[Any]:
    """Every operation with the example of each body that it takes."""
    operations = (schema[path][method] for path in schema for method in schema[path])
    for operation in operations:
        bodies = operation.definition.raw.get("requestBody", {"content": {None: {}}})["content"]
        for media_type, content in bodies.items():
            name = " ".join(filter(None, (operation.label, media_type)))
            yield pytest.param(operation, media_type, content.get("example"), id=name)


@pytest.mark.parametrize(("operation", "media_type", "body"), list(examples()))
def test_every_example_is_answered(
    operation: Any, media_type: str | None, body: Any, server: Server
) -> None:
    paths = {"name": WRITER} if operation.get_parameter("name", "path") else {}
    # With JSON the model stands in the body.
    asks = media_type != "application/json" and operation.get_parameter("model", "query")
    queries = {"model": WRITER} if asks else {}
    rest = {} if media_type is None else {"media_type": media_type, "body": body}
    case = operation.Case(path_parameters=paths, query=queries, **rest)
    assert case.call_and_validate(server.url, timeout=REQUEST_TIMEOUT_S).status_code == 200
