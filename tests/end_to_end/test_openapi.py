"""Every operation of the OpenAPI document, asked with made-up requests: answers are as it says.

schemathesis makes the requests, good ones and bad ones, from the document, and holds each answer to
it: status, media type, headers, schema, every event and every line of a stream.
"""

import json
import string
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import CheckFunction
from schemathesis.core.parameters import ParameterLocation
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from service.app import create_app
from service.bundle.store import write_bundle
from service.http.api_keys import new_key
from service.settings import Settings
from tests.bundles import ALPHABET, tiny_encoder_decoder_files, tiny_files
from tests.end_to_end.server import NO_CERTIFICATES, Server, serve
from tests.labelers import Sort, tiny_labeler_files, unstripped

# The names that the document's examples have.
MODELS = WRITER, TRANSLATOR = "alice-lstm", "g2p-en"
# The labelers that a path is for, by the names that they are served with.
LABELERS: dict[str, dict[str, Sort]] = {
    "/classify": {"language-id": "forward", "several": "several"},
    "/tag": {"accents": "restore", "bio": "bio"},
}
SPARE = "spare"  # what is loaded and unloaded
SECRET, KEY = new_key("tester", "admin")
HEADERS = {"Authorization": f"Bearer {SECRET}"}
SOURCE_LANG, TARGET_LANG = "en", "ISO 8601"
NDJSON = "application/x-ndjson"
REQUEST_TIMEOUT_S = 30.0

SETTINGS = Settings(max_tokens=64)  # so that nothing takes long
LIMITS = {
    "n": SETTINGS.max_n,
    "best_of": SETTINGS.max_n,
    "num_hypotheses": SETTINGS.max_n,
    "beam_size": SETTINGS.max_beam_size,
}


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
    """The service's document, with what only a server knows: what it serves, and its limits."""
    whole: dict[str, Any] = deepcopy(create_app(SETTINGS, []).openapi())
    for path, operations in whole["paths"].items():
        for operation in operations.values():
            for parameter in operation.get("parameters", []):
                if parameter["name"] in {"name", "model"}:
                    changes = path.startswith("/admin/")
                    parameter["schema"] = {"enum": [SPARE] if changes else models_of(path)}
            body = operation.get("requestBody", {"content": {}})
            for each in (body, *operation["responses"].values()):
                describe_lines(each)
            for content in body["content"].values():
                describe_fields(path, content["schema"])
    return whole


def models_of(path: str) -> Sequence[str]:
    """The models that a path may be asked for."""
    return list(LABELERS.get(path, MODELS))


def describe_lines(message: dict[str, Any]) -> None:
    """Taken for a list, a stream has a schema that can be checked."""
    if (lines := message.get("content", {}).get(NDJSON)) is not None:
        lines["schema"] = {"type": "array", "items": lines["itemSchema"]}


def describe_fields(path: str, body: dict[str, Any]) -> None:
    fields = body.get("properties", {})
    required = body.setdefault("required", []) if fields else []
    if path == "/libretranslate/translate":
        fields["source"] = {"enum": [SOURCE_LANG, "auto"]}
        fields["target"] = {"enum": [TARGET_LANG]}
        fields["model"] = {"enum": [TRANSLATOR, None]}
    elif "model" in fields:
        fields["model"] = {"enum": models_of(path)}
        required.extend({"model"} - set(required))  # of several
    if "state" in fields:
        fields["state"] = {"type": "null"}  # servers make them
    for name in fields.keys() & LIMITS.keys():
        for kind in fields[name].get("anyOf", [fields[name]]):
            if kind["type"] == "integer":
                kind["maximum"] = LIMITS[name]


schema = schemathesis.openapi.from_dict(
    document(), config=schemathesis.Config.from_dict({"seed": 1})
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("models")
    # All the ids that the examples have.
    characters = "".join(dict.fromkeys(ALPHABET + string.printable))
    write_bundle(folder, *tiny_files("lstm", name=WRITER, characters=characters))
    manifest, files = tiny_encoder_decoder_files("gru", name=TRANSLATOR)
    languages = {
        "source": manifest.source.model_copy(update={"lang": SOURCE_LANG}),
        "target": manifest.target.model_copy(update={"lang": TARGET_LANG}),
    }
    write_bundle(folder, manifest.model_copy(update=languages), files)
    write_bundle(folder, *tiny_files("gru", name=SPARE))
    for name, sort in (LABELERS["/classify"] | LABELERS["/tag"]).items():
        labeler, files = tiny_labeler_files(sort, name=name)
        write_bundle(folder, unstripped(labeler) if sort == "forward" else labeler, files)
    keys = folder.parent / f"{folder.name}-keys"
    keys.write_text(KEY.line())
    limits: dict[str, Any] = {
        "log_level": "warning",
        "max_tokens": SETTINGS.max_tokens,
        "api_keys_file": keys,
    }
    with serve(folder, **limits) as running:
        yield running
        assert running.process.poll() is None


@schema.parametrize()
@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_answers_are_as_the_document_says(case: schemathesis.Case[Any], server: Server) -> None:
    at_fault = case.meta is not None and case.meta.is_negative_at(ParameterLocation.QUERY)
    if case.media_type == "application/json" and not at_fault:
        case.query = {}  # of /score: parameters are of streams, and refused beside JSON
    # Some limits are settings, and what fields allow of each other stands in no JSON schema: a
    # request may be as the document says and be refused.
    left_out: list[CheckFunction] = [positive_data_acceptance]
    if case.media_type == NDJSON:
        # A line that is bad is told as such in its place in the answer, whose status came before.
        left_out.append(negative_data_rejection)
    case.call_and_validate(
        server.url, excluded_checks=left_out, timeout=REQUEST_TIMEOUT_S, headers=HEADERS
    )


def examples() -> Iterator[Any]:
    """Every operation with the example of each body that it takes, streamed, too."""
    operations = (schema[path][method] for path in schema for method in schema[path])
    for operation in operations:
        bodies = operation.definition.raw.get("requestBody", {"content": {None: {}}})["content"]
        for media_type, content in bodies.items():
            name = " ".join(filter(None, (operation.label, media_type)))
            example = content.get("example")
            yield pytest.param(operation, media_type, example, {}, id=name)
            stream = content.get("schema", {}).get("properties", {}).get("stream")
            if stream is not None and stream.get("const", True):
                streamed = example | {"stream": True}
                yield pytest.param(operation, media_type, streamed, {}, id=f"{name} stream")
            parameters = operation.definition.raw.get("parameters", [])
            takes_mode = any(x["name"] == "mode" for x in parameters)
            if media_type == "text/plain" and takes_mode:
                yield pytest.param(
                    operation, media_type, example, {"mode": "total"}, id=f"{name} total"
                )


@pytest.mark.parametrize(("operation", "media_type", "body", "query"), list(examples()))
def test_every_example_is_answered(
    operation: Any, media_type: str | None, body: Any, query: dict[str, str], server: Server
) -> None:
    changes = operation.path.startswith("/admin/")
    if changes and not operation.path.endswith("/unload"):
        httpx.post(
            f"{server.url}/admin/models/{SPARE}/unload", headers=HEADERS, verify=NO_CERTIFICATES
        )
    elif changes:
        httpx.post(
            f"{server.url}/admin/models/{SPARE}/load", headers=HEADERS, verify=NO_CERTIFICATES
        )
    named = SPARE if changes else WRITER
    paths = {"name": named} if operation.get_parameter("name", "path") else {}
    # With JSON the model stands in the body.
    takes_model = media_type != "application/json" and operation.get_parameter("model", "query")
    served = models_of(operation.path)[0]
    queries = query | ({"model": served} if takes_model else {})
    rest = {} if media_type is None else {"media_type": media_type, "body": body}
    case = operation.Case(path_parameters=paths, query=queries, **rest)
    answer = case.call_and_validate(server.url, timeout=REQUEST_TIMEOUT_S, headers=HEADERS)
    assert answer.status_code == 200
