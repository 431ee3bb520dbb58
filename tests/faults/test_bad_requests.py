"""Rows 1 to 9, 12, 13, 22, 27, 28 and 37 of the table of faults, over real sockets.

Every fault here is repeated a hundred times: the server lives, answers the next good request at
once, has counted every one, and has not grown.
"""

import gzip
import json
import select
import socket
import time
import unicodedata
import zlib
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.end_to_end.server import Server, serve
from tests.faults.conftest import LIMITS
from tests.faults.support import MARKER, goes_on, moved, problem_of

JSON = {"Content-Type": "application/json"}
GENERATE = {"model": "tiny-lstm", "prompt": "a", "max_tokens": 2}
MOST_GROWTH_BYTES = 2**20  # in 100 repeats


@dataclass(frozen=True)
class Fault:
    """What is sent, and what must come back."""

    row: int
    name: str
    status: int
    content: bytes
    path: str = "/generate"
    headers: dict[str, str] = field(default_factory=lambda: dict(JSON))
    method: str = "POST"
    repeats: int = 100


def body(**changes: Any) -> bytes:
    return json.dumps(GENERATE | changes).encode()


def raw(text: str) -> bytes:
    """A body with a value that no JSON writer makes."""
    return f'{{"model": "tiny-lstm", "prompt": "a", {text}}}'.encode()


def syntax() -> list[Fault]:
    whole = body(prompt=MARKER)
    return [
        Fault(1, "empty", 400, b""),
        Fault(1, "truncated", 400, whole[:-3]),
        Fault(1, "no object", 422, b"[1, 2]"),
        Fault(1, "a string", 422, b'"text"'),
        Fault(1, "bad UTF-8", 400, b'{"prompt": "\xff\xfe"}'),
        Fault(1, "two byte order marks", 400, 2 * b"\xef\xbb\xbf" + whole),
        Fault(1, "UTF-16", 400, whole.decode().encode("utf-16")),
        Fault(1, "two documents", 400, whole + whole),
        Fault(2, "NaN", 422, raw('"temperature": NaN')),
        Fault(2, "Infinity", 422, raw('"temperature": Infinity')),
        Fault(2, "minus Infinity", 422, raw('"temperature": -Infinity')),
        Fault(2, "1e400", 422, raw('"temperature": 1e400')),
        Fault(2, "an integer of 5,000 digits", 422, raw(f'"seed": {"9" * 5000}')),
        Fault(2, "a bool for an integer", 422, raw('"max_tokens": true')),
        Fault(2, "text for an integer", 422, raw('"max_tokens": "8"')),
        Fault(2, "a fraction for an integer", 422, raw('"max_tokens": 8.5')),
        Fault(3, "a lone surrogate", 422, raw('"stop": ["\\ud800"]')),
        Fault(3, "half a surrogate", 400, raw('"stop": ["\\ud8"]')),
        Fault(4, "100,000 brackets", 400, b"[" * 100_000, repeats=20),
        Fault(4, "100,000 objects", 400, b'{"a":' * 30_000, repeats=20),
        Fault(4, "many keys", 422, json.dumps({f"k{i}": i for i in range(8_000)}).encode(),
              repeats=20),
    ]  # fmt: skip


def bodies() -> list[Fault]:
    packed = {**JSON, "Content-Encoding": "gzip"}
    deflated = {**JSON, "Content-Encoding": "deflate"}
    bomb = gzip.compress(b" " * 10_000_000)
    return [
        Fault(5, "too large", 413, b" " * 200_001),
        Fault(6, "gzip", 415, gzip.compress(body()), headers=packed),
        Fault(6, "deflate", 415, zlib.compress(body()), headers=deflated),
        Fault(6, "br", 415, b"\x0b\x02\x80", headers={**JSON, "Content-Encoding": "br"}),
        Fault(6, "a bomb", 415, bomb, headers=packed),
        Fault(7, "no content type", 415, body(), headers={}),
        Fault(7, "text", 415, body(), headers={"Content-Type": "text/plain"}),
        Fault(7, "a type that is none", 415, body(), headers={"Content-Type": "//;;="}),
        Fault(7, "a form", 415, b"prompt=a",
              headers={"Content-Type": "application/x-www-form-urlencoded"}),
        Fault(8, "a method that is none", 405, b"", method="BREW"),
        Fault(8, "DELETE", 405, b"", method="DELETE"),
    ]  # fmt: skip


def limits() -> list[Fault]:
    return [
        Fault(12, "max_tokens over the limit", 422, body(max_tokens=513)),
        Fault(12, "max_tokens below none", 422, body(max_tokens=-1)),
        Fault(12, "n over the limit", 422, body(n=9)),
        Fault(12, "n 0", 422, body(n=0)),
        Fault(12, "a negative temperature", 422, body(temperature=-1e-9)),
        Fault(12, "top_p below 0", 422, body(top_p=-0.1)),
        Fault(12, "top_p over 1", 422, body(top_p=1.0000001)),
        Fault(12, "top_k 0", 422, body(top_k=0)),
        Fault(12, "an empty stop string", 422, body(stop=[""])),
        Fault(12, "too many stop strings", 422, body(stop=["a", "b", "c", "d", "e"])),
        Fault(12, "a stop string over the limit", 422, body(stop=["a" * 257])),
        Fault(12, "a bias for what is no character", 422, body(logit_bias={MARKER: 1.0})),
        Fault(12, "logprobs over the limit", 422, body(logprobs=21)),
        Fault(12, "a seed below 0", 422, body(seed=-1)),
        Fault(13, "a prompt over the limit", 422, body(prompt="a" * 2001)),
        Fault(13, "a list over the limit", 422, body(prompt=["a"] * 51)),
        Fault(13, "an empty list", 422, body(prompt=[])),
        Fault(13, "a cost over the limit", 422, body(prompt=["a"] * 10, n=8, max_tokens=512)),
        Fault(22, "another model", 404, body(model=MARKER)),
        Fault(22, "a path as a model", 404, body(model="../../etc/passwd")),
        Fault(22, "NUL in a model", 404, body(model="tiny-lstm\x00")),
        Fault(22, "10 KB of a model", 404, body(model="m" * 10_000)),
        Fault(22, "unicode dots", 404, body(model="\u2024\u2024/tiny-lstm")),
        Fault(22, "dots in the path", 404, b"", path="/models/%2e%2e%2f%2e%2e%2fetc", method="GET"),
        Fault(22, "NUL in the path", 404, b"", path="/models/tiny%00lstm", method="GET"),
        Fault(22, "dots to load", 403, b"", path="/admin/models/%2e%2e/load"),
        Fault(28, "a handle that is none", 422, body(state=MARKER)),
        Fault(28, "an empty handle", 422, body(state="")),
        Fault(28, "a forged handle", 422, body(state="A" * 2000)),
    ]  # fmt: skip


def labels() -> list[Fault]:
    """Of labels; bodies are read as on every path, so that a few are enough."""

    def classify(**changes: Any) -> bytes:
        return json.dumps({"model": "tiny-forward", "text": "a bed"} | changes).encode()

    def tag(**changes: Any) -> bytes:
        return json.dumps({"model": "tiny-chain", "text": "a bed"} | changes).encode()

    def score(**changes: Any) -> bytes:
        return classify(**{"label": "de"} | changes)

    def number(text: str) -> bytes:
        return f'{{"model": "tiny-forward", "text": "a", "min_probability": {text}}}'.encode()

    table: list[tuple[int, str, int, str, bytes]] = [
        (1, "truncated", 400, "/classify", classify(text=MARKER)[:-3]),
        (1, "no object", 422, "/tag", b"[1]"),
        (1, "bad UTF-8", 400, "/tag", b'{"text": "\xff"}'),
        (2, "NaN", 422, "/classify", number("NaN")),
        (2, "1e400", 422, "/classify", number("1e400")),
        (2, "a bool for an integer", 422, "/classify", classify(top=True)),
        (2, "text for an integer", 422, "/tag", tag(n="2")),
        (3, "a lone surrogate", 422, "/classify", classify(text="\ud800")),
        (3, "a lone surrogate", 422, "/tag", tag(text="a\udfff")),
        (4, "100,000 brackets", 400, "/classify", b"[" * 100_000),
        (5, "too large", 413, "/tag", b" " * 200_001),
        (12, "top 0", 422, "/classify", classify(top=0)),
        (12, "a probability over 1", 422, "/classify", classify(min_probability=1.0000001)),
        (12, "a probability below 0", 422, "/classify", classify(min_probability=-1e-9)),
        (12, "n 0", 422, "/tag", tag(n=0)),
        (12, "n over the limit", 422, "/tag", tag(n=9)),
        (12, "top over the limit", 422, "/tag", tag(places=True, top=21)),
        (13, "a text over the limit", 422, "/tag", tag(text="a" * 201)),
        (13, "a list over the limit", 422, "/classify", classify(text=["a"] * 51)),
        (13, "an empty list", 422, "/tag", tag(text=[])),
        (22, "a language model", 422, "/classify", classify(model="tiny-lstm")),
        (22, "a tagger", 422, "/classify", classify(model="tiny-chain")),
        (12, "a label that is none", 422, "/score", score(label=MARKER)),
        (12, "tokens of a label", 422, "/score", score(tokens=True)),
        (13, "more texts than labels", 422, "/score", score(text=["a", "b"], label=["de"])),
        (13, "a list over the limit", 422, "/score", score(text=["a"] * 51, label=["de"] * 51)),
        (22, "a label of a language model", 422, "/score", score(model="tiny-lstm")),
        (28, "a handle that is none", 422, "/classify", classify(state=MARKER)),
        (28, "a forged handle", 422, "/classify", classify(state="A" * 2000)),
    ]
    whole = [
        Fault(row, f"{path}, {name}", status, content, path, repeats=25)
        for row, name, status, path, content in table
    ]
    zipped = gzip.compress(classify())
    packed = {**JSON, "Content-Encoding": "gzip"}
    return [
        *whole,
        Fault(6, "/classify, gzip", 415, zipped, "/classify", packed, repeats=25),
        Fault(7, "/tag, no content type", 415, tag(), "/tag", {}, repeats=25),
    ]


def streams_of_labels() -> list[Fault]:
    table: list[tuple[int, str, int, str]] = [
        (12, "top 0", 422, "/classify?model=tiny-forward&top=0"),
        (12, "a mode that is none", 422, f"/classify?model=tiny-forward&mode={MARKER}"),
        (12, "a tagger in parts", 422, "/tag?model=tiny-chain&mode=total"),
        (12, "n over the limit", 422, "/tag?model=tiny-chain&n=9"),
        (22, "another model", 404, f"/tag?model={MARKER}"),
    ]
    text = {"Content-Type": "text/plain"}
    return [
        Fault(row, f"stream of {path.partition('?')[0]}, {name}", status, b"a\n", path, text,
              repeats=25)
        for row, name, status, path in table
    ]  # fmt: skip


FAULTS = [*syntax(), *bodies(), *limits(), *labels(), *streams_of_labels()]


def send(client: httpx.Client, fault: Fault) -> httpx.Response:
    return client.request(fault.method, fault.path, content=fault.content, headers=fault.headers)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.row}: {fault.name}")
def test_a_bad_request_is_refused_and_leaves_nothing_behind(server: Server, fault: Fault) -> None:
    with server.client() as client:
        problem = problem_of(send(client, fault), fault.status)
        growths: list[int] = []
        # An allocator grows once; what leaks grows each time.
        while not growths or (growths[-1] >= MOST_GROWTH_BYTES and len(growths) < 4):
            before, resident = server.samples(), server.resident_bytes()
            for _ in range(fault.repeats):
                send(client, fault)
            growths.append(server.resident_bytes() - resident)
            after = server.samples()
    assert growths[-1] < MOST_GROWTH_BYTES, growths
    if problem["type"] == "http-error":
        counted = [name for name in after if name.startswith("unroll_requests_total")]
        names = [name for name in counted if f'status="{fault.status}"' in name]
    else:
        names = [f'unroll_rejected_total{{reason="{problem["type"]}"}}']
    assert sum(moved(before, after, name) for name in names) == fault.repeats
    goes_on(server)


@pytest.mark.parametrize("host", ["127.1", "LOCALHOST:80", "[::1]"])
def test_this_machines_names_are_answered_however_its_address_is_spelled(
    server: Server, host: str
) -> None:
    with server.client() as client:
        assert client.get("/models", headers={"Host": host}).status_code == 200
        refused = client.get("/models", headers={"Host": "page.example"})
        assert problem_of(refused, 421)["type"] == "host-not-allowed"


def test_limits_are_told_with_the_refusal(server: Server) -> None:
    asked = {"max_tokens": (513, "512"), "n": (9, "8"), "prompt": ("a" * 2001, "2000")}
    with server.client() as client:
        for name, (value, limit) in asked.items():
            problem = problem_of(client.post("/generate", json=GENERATE | {name: value}), 422)
            assert limit in problem["detail"]
            assert [x["pointer"] for x in problem["errors"]] == [f"/{name}"]


def test_duplicate_keys_are_as_good_as_the_last_of_them(server: Server) -> None:
    twice = b'{"model": "tiny-lstm", "text": "b", "text": "a cat"}'
    with server.client() as client:
        answer = client.post("/score", content=twice, headers=JSON)
        plain = client.post("/score", json={"model": "tiny-lstm", "text": "a cat"})
    assert answer.json()["results"] == plain.json()["results"]


ODD_TEXTS = (
    "", "a", "\x00", "\u202eabc", "e\u0301", "\U0001f407\U0001f407", "\U0010ffff", "\ufeff",
    "\r\n\u2028\u2029\x85", "ß\u1e9e", "\ud7ff\ue000", "日本語",
)  # fmt: skip


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_odd_texts_have_the_documented_answer(server: Server, text: str) -> None:
    ask = {"model": "tiny-lstm", "text": text, "tokens": True}
    with server.client() as client:
        answer = client.post("/score", json=ask)
        assert answer.status_code == 200
        (result,) = answer.json()["results"]
        echoed = client.post(
            "/generate",
            json={"model": "tiny-lstm", "prompt": text, "max_tokens": 0, "echo": True},
        ).json()["results"][0]["choices"][0]["text"]
        strict = client.post("/score", json=ask | {"unknown": "error"})
    # As the manifest's normalization has it.
    assert result["chars"] == len(unicodedata.normalize("NFC", text.replace("\r\n", "\n")))
    assert echoed == text
    assert strict.status_code == (422 if result["unknown"] else 200)
    if result["unknown"]:
        problem_of(strict, 422)
    goes_on(server)


@pytest.mark.parametrize("path", ["/classify", "/tag"])
def test_odd_texts_have_the_documented_labels(server: Server, path: str) -> None:
    model = {"/classify": "tiny-forward", "/tag": "tiny-chain"}[path]
    with server.client() as client:
        answer = client.post(path, json={"model": model, "text": ODD_TEXTS})
        assert answer.status_code == 200, answer.text
        for text, result in zip(ODD_TEXTS, answer.json()["results"], strict=True):
            read = unicodedata.normalize("NFC", text.replace("\r\n", "\n"))
            if path == "/tag":
                # White space at the ends is dropped, as the manifest has it.
                assert result["text"] == read.strip()
            strict = client.post(path, json={"model": model, "text": text, "unknown": "error"})
            assert strict.status_code == (422 if result["unknown"] else 200)
            if result["unknown"]:
                problem_of(strict, 422)
    goes_on(server)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0}, {"temperature": 1e-9}, {"temperature": 1e9}, {"top_p": 1e-300},
        {"top_p": 1}, {"top_p": 0}, {"top_k": 1}, {"top_k": 10_000}, {"min_p": 1}, {"min_p": 0},
        {"logit_bias": {"a": 100, "b": -100}}, {"temperature": 1e-9, "top_p": 1e-9, "top_k": 1},
        {"presence_penalty": 2, "frequency_penalty": -2}, {"max_tokens": 0}, {"logprobs": 20},
    ],
    ids=str,
)  # fmt: skip
def test_extremes_of_sampling_are_defined(server: Server, options: dict[str, Any]) -> None:
    ask = {"model": "tiny-lstm", "prompt": "a cat", "max_tokens": 30, "seed": 5, "n": 2}
    with server.client() as client:
        first, second = (client.post("/generate", json=ask | options) for _ in range(2))
    assert first.status_code == 200, first.text
    assert first.json()["results"] == second.json()["results"]
    assert "NaN" not in first.text
    assert "Infinity" not in first.text


@pytest.mark.parametrize(
    "given",
    [b"a b", b"a\x01b", b"\xff\xfe", b"x" * 129, b"a;b", b"a/../b", b"a\tb", b"", b'"<script>"'],
)
def test_an_id_that_could_harm_is_replaced(server: Server, given: bytes) -> None:
    with server.client() as client:
        answer = client.get("/livez", headers=[(b"X-Request-Id", given)])
        kept = client.get("/livez", headers={"X-Request-Id": "Mine-1.2_3"})
    assert answer.headers["X-Request-Id"].encode("latin-1") != given
    assert answer.headers["X-Request-Id"].isalnum()
    assert kept.headers["X-Request-Id"] == "Mine-1.2_3"


@pytest.mark.parametrize(
    ("path", "model", "other_path", "other"),
    [
        ("/score", "tiny-gru", "/score", "tiny-lstm"),
        ("/classify", "tiny-forward", "/score", "tiny-gru"),
        ("/score", "tiny-gru", "/classify", "tiny-forward"),
    ],
)
def test_a_state_of_another_model_is_refused(
    server: Server, path: str, model: str, other_path: str, other: str
) -> None:
    with server.client() as client:
        ask = {"model": model, "text": "a cat", "return_state": True}
        state = client.post(path, json=ask).json()["results"][0]["state"]
        whole = {"model": model, "text": "a cat", "state": state}
        assert client.post(path, json=whole).status_code == 200
        problem = problem_of(client.post(other_path, json=whole | {"model": other}), 422)
        assert problem["errors"][0]["pointer"] == "/state"
        for broken in (
            state[:-4],
            state[4:],
            state[:50] + ("B" if state[50] == "A" else "A") + state[51:],
            state + "AAAA",
        ):
            problem_of(client.post(path, json=whole | {"state": broken}), 422)
    goes_on(server)


# --- bodies and connections that never end --------------------------------------------------------


def connected(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


@pytest.mark.parametrize("size", [1, 4096])
def test_a_body_in_chunks_is_refused_where_it_passes_the_limit(server: Server, size: int) -> None:
    head = (
        "POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        "Transfer-Encoding: chunked\r\n\r\n"
    )
    chunks = f"{size:x}\r\n{' ' * size}\r\n".encode() * (64_000 // size)
    resident = server.resident_bytes()
    with closing(connected(server)) as connection:
        connection.sendall(head.encode())
        answer, sent = b"", 0
        # A million of one byte would be five times the limit.
        with suppress(BrokenPipeError, ConnectionResetError):
            while not answer and sent < 1_000_000:
                connection.sendall(chunks)
                sent += 64_000
                if select.select([connection], [], [], 0.01)[0]:
                    answer = connection.recv(65536)
        if not answer:
            answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert server.resident_bytes() - resident < 16 * MOST_GROWTH_BYTES
    goes_on(server)


def test_a_thousand_idle_connections_are_closed_and_hold_nobody_up(tiny_models: Path) -> None:
    with serve(tiny_models, **(LIMITS | {"header_timeout_s": 2, "max_connections": 990})) as server:
        held = [connected(server) for _ in range(980)]
        try:
            goes_on(server)
            begun = time.monotonic()
            assert all(connection.recv(1) == b"" for connection in held)
            # At the deadline, and not before it.
            assert time.monotonic() - begun < 15
        finally:
            for connection in held:
                connection.close()
        goes_on(server)
