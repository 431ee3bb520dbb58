"""What is refused over HTTP: with which status, with which words, and never with the input."""

import gzip
import json
import re
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from service.app import create_app
from service.settings import Settings
from service.tasks.language_model import LanguageModelEngine
from tests.bundles import ALPHABET, in_memory, plain_files
from tests.fakes import AppClient, FakeSession

MARKER = "q7zmarkerz7q"
JSON = {"Content-Type": "application/json"}
PATHS = {"/generate": "prompt", "/score": "text"}

SETTINGS = Settings(
    max_body_bytes=20_000,
    max_inputs=5,
    max_prompt_chars=100,
    max_details=240,
    max_tokens=50,
    max_n=3,
    max_cost_tokens=200,
    max_stop=4,
    max_stop_chars=8,
    max_queue_tokens=400,
)
session = FakeSession(vocab_size=4 + len(ALPHABET))


@pytest.fixture(scope="module")
def client() -> Iterator[AppClient]:
    """A service with small limits and a model that is quick."""
    bundle = in_memory(*plain_files("fake", ALPHABET))
    engine = LanguageModelEngine(bundle, session, SETTINGS, precision="fp32")
    with AppClient(create_app(SETTINGS, [engine])) as running:
        yield running


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> str:
    """Each endpoint with a body."""
    chosen: str = request.param
    return chosen


def refused(
    client: AppClient, response: httpx.Response, status: int, *, pointer: str | None = None
) -> Any:
    """The problem document, after everything that holds for each of them."""
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    problem = response.json()
    assert set(problem) == {"type", "title", "status", "detail", "request_id", "errors"}
    assert problem["status"] == status
    assert problem["request_id"] == response.headers["X-Request-Id"]
    assert problem["detail"]
    shown = response.text + str(response.headers)
    assert MARKER not in shown.lower()
    assert "Traceback" not in shown
    assert "pydantic" not in shown
    assert len(response.content) < 4000
    if pointer is not None:
        assert pointer in [mistake["pointer"] for mistake in problem["errors"]]
    good = client.post("/score", json={"text": "abc"})
    assert good.status_code == 200
    return problem


def send(client: AppClient, path: str, content: bytes) -> httpx.Response:
    return client.post(path, content=content, headers=JSON)


def body(path: str, **options: Any) -> dict[str, Any]:
    length = {"max_tokens": 10} if path == "/generate" else {}
    return {PATHS[path]: "abc"} | length | options


# --- syntax ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (b'{"prompt": "Zo\xeb"}', "the body is not valid UTF-8 at byte 14 (counted"),
        (b'{"prompt": "\xc3\xab\xc3"}', "the body is not valid UTF-8 at byte 14 (counted"),
        (b"\xef\xbb\xbf" + b'{"prompt": "\xff"}', "the body is not valid UTF-8 at byte 12 "),
        ('{"prompt": "a"}'.encode("utf-16"), "the body is UTF-16; send it as UTF-8"),
        (b'{"prompt": "a"', "the body is not JSON"),
    ],
)
def test_a_body_that_is_not_utf_8_is_called_that_with_its_place(
    client: AppClient, path: str, content: bytes, detail: str
) -> None:
    problem = refused(client, client.post(path, content=content, headers=JSON), 400)
    assert problem["detail"].startswith(detail)


def test_a_byte_order_mark_before_json_is_passed_over(client: AppClient) -> None:
    content = b"\xef\xbb\xbf" + json.dumps({"text": "abc"}).encode()
    assert client.post("/score", content=content, headers=JSON).status_code == 200


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b" ",
        b"{",
        b'{"prompt": "' + MARKER.encode(),
        b'{"prompt": "a",}',
        b'{"prompt": "a"} ' + MARKER.encode(),
        b"{'prompt': 'a'}",
        MARKER.encode(),
        b'{"prompt": "\xff\xfe"}',
        b'{"prompt": "\xed\xa0\x80"}',
        b"\xff\xfe{\x00}\x00",
        b'\xef\xbb\xbf\xef\xbb\xbf{"prompt": "a"}',
        b'{"prompt": "a\x01b"}',
        b'{"prompt": "\\x41"}',
        b'{"prompt": "\\ud8zz"}',
        b'{"max_tokens": 08}',
        b'{"max_tokens": 0x8}',
        b"[" * 100_000,
        b'{"prompt":' * 5000,
    ],
)
def test_what_is_not_json_is_a_bad_request(client: AppClient, path: str, content: bytes) -> None:
    problem = refused(client, send(client, path, content[:20_000]), 400)
    assert problem["type"] == "bad-request"
    assert problem["errors"] == []


@pytest.mark.parametrize("content", [b"[]", b'"text"', b"1", b"null", b"true"])
def test_json_that_is_no_object_is_refused_by_the_schema(
    client: AppClient, path: str, content: bytes
) -> None:
    problem = refused(client, send(client, path, content), 422, pointer="")
    assert problem["type"] == "invalid-request"


def test_of_a_key_that_stands_twice_the_last_one_counts(client: AppClient) -> None:
    answers = [
        send(client, "/score", content).json()
        for content in (b'{"text": "abc", "text": "de"}', b'{"text": "de"}')
    ]
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    "escape", [r"\ud800", r"\udfff", r"a\ud83dz", r"\ud800\u0041", r"\ud800\n"]
)
@pytest.mark.parametrize("place", ["value", "name", "list"])
def test_a_lone_surrogate_is_no_character(
    client: AppClient, path: str, escape: str, place: str
) -> None:
    field = PATHS[path]
    content = {
        "value": f'{{"{field}": "{escape}"}}',
        "name": f'{{"{escape}": 1}}',
        "list": f'{{"{field}": ["a", "{escape}"]}}',
    }[place]
    problem = refused(client, send(client, path, content.encode()), 422)
    assert "surrogate" in problem["detail"]


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", "9" * 5000, "true", '"8"', "[8]"]
)
@pytest.mark.parametrize("field", ["temperature", "max_tokens", "top_k", "top_p", "seed", "n"])
def test_a_number_that_is_none_is_refused(client: AppClient, field: str, value: str) -> None:
    content = f'{{"prompt": "a", "{field}": {value}}}'.encode()
    problem = refused(client, send(client, "/generate", content), 422)
    if len(value) < 100:
        assert problem["errors"][0]["pointer"] == f"/{field}"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", -1),
        ("max_tokens", 1.0),
        ("max_tokens", 1.5),
        ("max_tokens", 2**64),
        ("temperature", -0.1),
        ("temperature", -5e-324),
        ("temperature", 1.1e9),
        ("temperature", None),
        ("top_k", 0),
        ("top_k", -1),
        ("top_k", 2.0),
        ("top_p", -0.1),
        ("top_p", 1.0000001),
        ("min_p", -1),
        ("min_p", 2),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", 2**64),
        ("seed", 1.0),
        ("n", 0),
        ("n", None),
        ("logprobs", -1),
        ("logprobs", 21),
        ("presence_penalty", 100.1),
        ("presence_penalty", "1"),
        ("frequency_penalty", -100.1),
        ("frequency_penalty", None),
        ("logit_bias", None),
        ("logit_bias", [["a", 1.0]]),
        ("logit_bias", {"a": "1"}),
        ("logit_bias", {"a": True}),
        ("logit_bias", {"a": None}),
        ("logit_bias", {"a": 1000.1}),
        ("logit_bias", {"a": -1000.1}),
        ("logit_bias", {"": 1.0}),
        ("logit_bias", {MARKER: 1.0}),
        ("logit_bias", {"a" + MARKER: MARKER}),
        ("logit_bias", {"\u2603": 1.0}),  # not in the vocabulary
        ("logit_bias", {"\ue000": 1.0}),
        ("logit_bias", {"\ue001": 1.0}),
        ("logit_bias", {"\ue003": 1.0}),
        ("logit_bias", {chr(0x4E00 + i): 0.0 for i in range(1025)}),
        ("echo", 1),
        ("echo", "true"),
        ("echo", None),
        ("stop", 1),
        ("stop", None),
        ("stop", ["a", None]),
        ("stop", ""),
        ("stop", ["a", ""]),
        ("prompt", None),
        ("prompt", []),
        ("prompt", ["a", 1]),
        ("prompt", [["a"]]),
        ("prompt", {MARKER: MARKER}),
        ("model", 1),
        ("model", [MARKER]),
    ],
)
def test_a_field_of_generate_that_does_not_hold_is_refused_at_its_place(
    client: AppClient, field: str, value: Any
) -> None:
    answer = client.post("/generate", json={"prompt": "a"} | {field: value})
    problem = refused(client, answer, 422)
    pointers = [mistake["pointer"] for mistake in problem["errors"]]
    assert all(x.split("/")[1] == field for x in pointers)
    assert pointers


@pytest.mark.parametrize(
    ("options", "pointer"),
    [
        ({"text": None}, "/text"),
        ({"text": []}, "/text"),
        ({"text": ["a", 1, "b"]}, "/text/1"),
        ({"context": 1}, "/context"),
        ({"context": ["a"]}, ""),
        ({"text": ["a", "b"], "context": ["a"]}, ""),
        ({"text": ["a", "b"], "context": []}, ""),
        ({"tokens": 1}, "/tokens"),
        ({"tokens": True, "top_logprobs": 21}, "/top_logprobs"),
        ({"tokens": True, "top_logprobs": -1}, "/top_logprobs"),
        ({"top_logprobs": 1}, ""),
        ({"bos": "yes"}, "/bos"),
        ({"eos": "true"}, "/eos"),
        ({"unknown": MARKER}, "/unknown"),
        ({"unknown": None}, "/unknown"),
    ],
)
def test_a_field_of_score_that_does_not_hold_is_refused_at_its_place(
    client: AppClient, options: dict[str, Any], pointer: str
) -> None:
    if options == {"context": ["a"]}:
        options = {"text": ["a", "b"], "context": ["a", "b", "c"]}
    answer = client.post("/score", json={"text": "a"} | options)
    refused(client, answer, 422, pointer=pointer)


@pytest.mark.parametrize(
    "name", [MARKER, f"{MARKER}\r\n", f"a/{MARKER}", f"{MARKER}" * 100, "", "Prompt", "\u2028"]
)
def test_a_field_that_does_not_exist_is_refused_without_its_name(
    client: AppClient, path: str, name: str
) -> None:
    problem = refused(client, client.post(path, json=body(path) | {name: MARKER}), 422, pointer="")
    (mistake,) = problem["errors"]
    assert mistake["detail"].startswith("unknown field; ")
    known = re.split("[tT]he known fields are ", mistake["detail"])[-1].split(", ")
    assert PATHS[path] in known
    assert "model" in known


@pytest.mark.parametrize(
    ("path", "name", "meant"),
    [
        ("/generate", "max_token", "max_tokens"),
        ("/generate", "maxTokens", "max_tokens"),
        ("/generate", "max_new_tokens", "max_tokens"),
        ("/generate", "max_length", "max_tokens"),
        ("/generate", "num_return_sequences", "n"),
        ("/generate", "inputs", "prompt"),
        ("/generate", "text", "prompt"),
        ("/generate", "temprature", "temperature"),
        ("/generate", "temperatur" + "e" * 10_000, None),
        ("/generate", "zzz", None),
        ("/score", "prompt", "text"),
        ("/translate", "q", "source"),
        ("/translate", "num_beams", "beam_size"),
    ],
)
def test_a_field_that_may_have_been_meant_is_named(
    client: AppClient, path: str, name: str, meant: str | None
) -> None:
    answer = client.post(path, json={"model": "tiny-gru", name: 1})
    details = [x["detail"] for x in answer.json()["errors"]]
    (told,) = [x for x in details if x.startswith("unknown field")]
    assert (f"did you mean `{meant}`?" in told) == (meant is not None)
    assert ("did you mean" in told) == (meant is not None)


def test_only_the_first_unknown_names_are_compared(client: AppClient) -> None:
    names = {f"temperatur{i}": 1 for i in range(50)}
    answer = client.post("/generate", json=names)
    assert answer.text.count("`temperature`?") <= 2 * 8


def test_a_missing_field_is_named(client: AppClient) -> None:
    problem = refused(client, client.post("/score", json={}), 422, pointer="/text")
    assert "required" in problem["detail"]


def test_several_mistakes_are_all_told(client: AppClient) -> None:
    answer = client.post("/generate", json={"prompt": 1, "n": 0, "seed": -1, MARKER: 1})
    problem = refused(client, answer, 422)
    pointers = {mistake["pointer"] for mistake in problem["errors"]}
    assert {"/prompt", "/n", "/seed", ""} <= pointers


def test_thousands_of_mistakes_are_counted_and_not_listed(client: AppClient, path: str) -> None:
    options: dict[str, Any] = {f"{i}{MARKER}"[:9]: 0 for i in range(1200)}
    problem = refused(client, client.post(path, json=options), 422)
    assert problem["errors"] == []
    assert re.search(r"[0-9]{4} errors", problem["detail"])


@pytest.mark.parametrize(
    ("path", "field"),
    [("/generate", "prompt"), ("/generate", "stop"), ("/score", "text"), ("/score", "context")],
)
def test_a_list_is_refused_at_its_first_mistake(client: AppClient, path: str, field: str) -> None:
    answer = client.post(path, json=body(path) | {field: ["a", *([0] * 5000)]})
    problem = refused(client, answer, 422, pointer=f"/{field}/1")
    assert len(problem["errors"]) == 2  # it is no text, and its second entry is none


# --- content type, encoding and size --------------------------------------------------------------


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "text/markdown",
        "application/jsonp",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        f"application/{MARKER}",
        "text/json",
        "application/json, text/plain",
    ],
)
def test_a_body_of_another_type_is_refused(
    client: AppClient, path: str, content_type: str | None
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    content = json.dumps(body(path)).encode()
    answer = client.post(path, content=content, headers=headers)
    problem = refused(client, answer, 415)
    assert "application/json" in problem["detail"]


@pytest.mark.parametrize(
    "content_type", ["application/json", "Application/JSON", "application/json; charset=utf-8"]
)
def test_json_by_any_spelling_is_taken(client: AppClient, path: str, content_type: str) -> None:
    content = json.dumps(body(path)).encode()
    answer = client.post(path, content=content, headers={"Content-Type": content_type})
    assert answer.status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, identity", MARKER])
def test_a_compressed_body_is_refused_before_it_is_read(
    client: AppClient, path: str, encoding: str
) -> None:
    spaces = b" " * 1_000_000
    bomb = zlib.compress(spaces) if encoding == "deflate" else gzip.compress(spaces)
    answer = client.post(path, content=bomb, headers=JSON | {"Content-Encoding": encoding})
    refused(client, answer, 415)


def test_the_identity_is_no_encoding(client: AppClient, path: str) -> None:
    headers = JSON | {"Content-Encoding": "identity"}
    answer = client.post(path, content=json.dumps(body(path)).encode(), headers=headers)
    assert answer.status_code == 200


class Chunks:
    """A body without a length that counts what was taken of it."""

    def __init__(self, chunk: bytes, count: int) -> None:
        self._chunk, self._count = chunk, count
        self.taken = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for _ in range(self._count):
            self.taken += 1
            yield self._chunk


@pytest.mark.parametrize("chunk", [b"x", b"x" * 4096])
def test_a_body_without_a_length_is_refused_when_it_is_over_the_limit(
    client: AppClient, path: str, chunk: bytes
) -> None:
    chunks = Chunks(chunk, 1_000_000)
    answer = client.post(path, content=chunks, headers=JSON)
    problem = refused(client, answer, 413)
    assert "20000 bytes" in problem["detail"]
    assert answer.headers["Connection"] == "close"
    assert chunks.taken <= 20_000 // len(chunk) + 1


def test_a_body_that_declares_too_much_is_refused_before_it_is_read(
    client: AppClient, path: str
) -> None:
    chunks = Chunks(b"x", 1)
    for declared in ("20001", "9" * 30, "9" * 5000):
        answer = client.post(path, content=chunks, headers=JSON | {"Content-Length": declared})
        refused(client, answer, 413)
    assert chunks.taken == 0


def test_a_body_at_the_limit_is_taken(client: AppClient) -> None:
    content = b'{"text": "abc"' + b" " * (20_000 - 15) + b"}"
    assert len(content) == 20_000
    assert send(client, "/score", content).status_code == 200
    refused(client, send(client, "/score", content + b" "), 413)


# --- limits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "options", "pointer", "limit"),
    [
        ("/generate", {"max_tokens": 51}, "/max_tokens", 50),
        ("/generate", {"max_tokens": 10**18}, "/max_tokens", 50),
        ("/generate", {"n": 4}, "/n", 3),
        ("/generate", {"n": 10**18}, "/n", 3),
        ("/generate", {"prompt": ["a"] * 6, "max_tokens": 1}, "/prompt", 5),
        ("/generate", {"prompt": "a" * 101}, "/prompt", 100),
        ("/generate", {"prompt": ["a", "a" * 101], "max_tokens": 1}, "/prompt", 100),
        ("/generate", {"prompt": ["a"] * 5, "n": 3, "max_tokens": 14}, "/max_tokens", 200),
        ("/generate", {"max_tokens": 31, "n": 2, "logprobs": 0}, "/logprobs", 240),
        (
            "/generate",
            {"prompt": "a" * 31, "max_tokens": 0, "n": 2, "logprobs": 0, "echo": True},
            "/logprobs",
            240,
        ),
        ("/generate", {"stop": ["a"] * 5}, "/stop", 4),
        ("/generate", {"stop": "a" * 9}, "/stop", 8),
        ("/generate", {"stop": ["a", "a" * 9]}, "/stop", 8),
        ("/score", {"text": ["a"] * 6}, "/text", 5),
        ("/score", {"text": "a" * 61, "tokens": True}, "/text", 240),
        ("/score", {"text": ["a" * 31] * 2, "tokens": True}, "/text", 240),
        ("/score", {"text": "a" * 41, "tokens": True, "top_logprobs": 2}, "/text", 240),
        ("/generate", {"max_tokens": 11, "logprobs": 20}, "/logprobs", 240),
        ("/score", {"text": "a" * 401}, "/text", 400),
        # One context is read before every text: five times 81.
        ("/score", {"text": [""] * 5, "context": "a" * 81}, "/text", 400),
    ],
)
def test_what_is_over_a_limit_is_refused_with_the_limit_and_before_any_work(
    client: AppClient, path: str, options: dict[str, Any], pointer: str, limit: int
) -> None:
    session.runs.clear()
    answer = client.post(path, json=body(path) | options)
    assert session.runs == []
    problem = refused(client, answer, 422, pointer=pointer)
    assert re.search(rf"\b{limit}\b", problem["errors"][0]["detail"])


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("/generate", {"max_tokens": 50}),
        ("/generate", {"n": 3, "max_tokens": 1}),
        ("/generate", {"prompt": ["a"] * 5, "max_tokens": 13, "n": 3}),
        ("/generate", {"prompt": "a" * 100, "max_tokens": 1}),
        ("/generate", {"stop": ["a" * 8] * 4, "max_tokens": 1}),
        ("/generate", {"logit_bias": {"a": 1000, "\ue002": -1000.0}, "max_tokens": 1}),
        ("/generate", {"presence_penalty": 100, "frequency_penalty": -100, "max_tokens": 1}),
        ("/generate", {"max_tokens": 30, "n": 2, "logprobs": 0}),
        ("/generate", {"max_tokens": 10, "logprobs": 20}),
        ("/score", {"text": ["a"] * 5}),
        ("/score", {"text": "a" * 60, "tokens": True}),
        ("/score", {"text": "a" * 40, "tokens": True, "top_logprobs": 2}),
        ("/score", {"text": "a" * 400}),
        ("/score", {"text": [""] * 5, "context": "a" * 80}),
    ],
)
def test_what_is_at_a_limit_is_taken(client: AppClient, path: str, options: dict[str, Any]) -> None:
    answer = client.post(path, json=body(path) | options)
    assert answer.status_code == 200, answer.text


# --- names and paths ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        MARKER,
        "",
        "../fake",
        "fake/../fake",
        "/etc/passwd",
        "fake\x00",
        "Fake",
        "fake ",
        "\uff0e\uff0e",
        "\u2024\u2024/fake",
        f"%2e%2e{MARKER}",
        MARKER * 1000,
    ],
)
def test_a_model_that_is_not_served_is_not_found(client: AppClient, path: str, name: str) -> None:
    problem = refused(client, client.post(path, json=body(path, model=name)), 404)
    assert problem["type"] == "model-not-found"
    assert problem["detail"] == "no such model; the models are fake"


@pytest.mark.parametrize(
    "name",
    [
        MARKER,
        "%2e%2e",
        "..%2ffake",
        "fake%2f..%2ffake",
        "%00",
        "fake%00",
        "fake%0d%0aX-Evil:%201",
        "%ff%fe",
        "%EF%BC%8E%EF%BC%8E",
        "%252e%252e",
        "FAKE",
        MARKER * 900,
    ],
)
def test_a_model_page_that_does_not_exist_is_not_found(client: AppClient, name: str) -> None:
    answer = client.get(f"/models/{name}")
    refused(client, answer, 404)
    assert "X-Evil" not in answer.headers


@pytest.mark.parametrize("path", [f"/{MARKER}", "/generate/more", "/models/fake/more", "/v1"])
def test_a_path_that_does_not_exist_is_not_found(client: AppClient, path: str) -> None:
    detail = refused(client, client.get(path), 404)["detail"]
    assert detail.startswith("there is no such path; ")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/generate", "OPTIONS, POST"),
        ("PUT", "/score", "OPTIONS, POST"),
        ("DELETE", "/models/fake", "GET, HEAD, OPTIONS"),
        ("POST", "/models", "GET, HEAD, OPTIONS"),
        ("POST", "/readyz", "GET, HEAD, OPTIONS"),
        (MARKER.upper(), "/livez", "GET, HEAD, OPTIONS"),
    ],
)
def test_a_method_that_a_path_does_not_take_is_refused_with_those_it_takes(
    client: AppClient, method: str, path: str, allowed: str
) -> None:
    answer = client.request(method, path)
    refused(client, answer, 405)
    assert answer.headers["Allow"] == allowed


def test_a_length_that_is_left_out_is_the_models_limit_where_that_is_less(
    client: AppClient,
) -> None:
    # A seed whose text does not end before the limit.
    lengths = []
    for seed in range(8):
        answer = client.post("/generate", json={"prompt": "a", "seed": seed})
        assert answer.status_code == httpx.codes.OK
        lengths.append(answer.json()["usage"]["completion_tokens"])
    assert max(lengths) == SETTINGS.max_tokens


def test_a_query_parameter_is_refused_without_its_value(client: AppClient) -> None:
    refused(client, client.get("/models/fake/vocab", params={"side": MARKER}), 422, pointer="/side")


def test_the_fields_of_a_json_request_stand_in_its_body(client: AppClient) -> None:
    answer = client.post("/score", params={"bos": "false"}, json={"text": "a"})
    assert "body" in refused(client, answer, 422)["detail"]


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/v1/chat/completions", "/v1/completions"),
        ("/chat/completions", "/v1/completions"),
        ("/v1/completion", "did you mean /v1/completions?"),
        ("/genrate", "did you mean /generate?"),
        ("/api/generate", "/generate"),
        ("/healthz", "/livez"),
        (f"/{'z' * 20}", "/docs lists all paths"),
        (f"/generat{'e' * 5000}", "/docs lists all paths"),
    ],
)
def test_a_path_that_is_not_there_says_where_to_go(client: AppClient, path: str, hint: str) -> None:
    answer = client.post(path, json={})
    assert answer.status_code == 404
    told = answer.json()
    is_openais = "completion" in path
    assert hint in (told["error"]["message"] if is_openais else told["detail"])
    assert path in hint or path == "/api/generate" or path not in answer.text
