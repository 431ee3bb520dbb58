"""Streams over real sockets: written as they come about, and ended with their client."""

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.bundle.store import write_bundle
from tests.bundles import tiny_encoder_decoder_files, tiny_files
from tests.end_to_end.server import Server, serve
from tests.labelers import tiny_labeler_files
from tests.service.events import parsed

BODY = {"model": "tiny-lstm", "prompt": "the ", "max_tokens": 1000, "seed": 1, "temperature": 3.0}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("models")
    write_bundle(folder, *tiny_files("lstm"))
    write_bundle(folder, *tiny_encoder_decoder_files())
    write_bundle(folder, *tiny_labeler_files("text"))
    write_bundle(folder, *tiny_labeler_files("bio"))
    with serve(folder, engine_threads=1) as running:
        yield running


def without_end() -> dict[str, object]:
    """A request whose text is long: eos is forbidden."""
    return {**BODY, "logit_bias": {"\ue002": -1000.0}}


def test_the_first_tokens_come_long_before_the_last(server: Server) -> None:
    body = without_end() | {"stream": True}
    with server.client() as client, client.stream("POST", "/generate", json=body) as answer:
        assert answer.headers["transfer-encoding"] == "chunked"
        chunks = answer.iter_raw()
        first = next(chunks)
        assert first.startswith(b"event: token\n")
        whole = first + b"".join(chunks)
    events = parsed(whole)
    # What came first was a small part of it.
    assert len(first) < len(whole) / 10
    assert events[-1].name == "done"
    text = "".join(json.loads(event.data)["text"] for event in events[:-1])
    with server.client() as client:
        plain = client.post("/generate", json=without_end()).json()
    assert text == plain["results"][0]["choices"][0]["text"]


def test_a_client_that_goes_stops_the_engine(server: Server) -> None:
    def idle_for_s() -> float:
        with server.client() as client:
            engines = client.get("/readyz").json()["engines"]
        ages = {engine["model"]: engine["last_step_age_s"] for engine in engines}
        return float(ages["tiny-lstm"])

    body = {**without_end(), "n": 8, "stream": True}
    with server.client() as client, client.stream("POST", "/generate", json=body) as answer:
        next(answer.iter_raw())
    deadline = time.monotonic() + 20
    while idle_for_s() < 0.2:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_many_streams_at_once_each_have_their_own_text(server: Server) -> None:
    plain = {}
    with server.client() as client:
        for seed in range(6):
            body = {**BODY, "max_tokens": 200, "seed": seed}
            answer = client.post("/generate", json=body).json()
            plain[seed] = answer["results"][0]["choices"][0]["text"]

        def streamed(seed: int) -> Iterator[str]:
            body = {**BODY, "max_tokens": 200, "seed": seed, "stream": True}
            with httpx.stream("POST", f"{server.url}/generate", json=body) as answer:
                buffered = b"".join(answer.iter_raw())
            for event in parsed(buffered)[:-1]:
                yield json.loads(event.data)["text"]

        found = {seed: "".join(streamed(seed)) for seed in plain}
    assert found == plain


def test_a_translation_streams(server: Server, tmp_path: Path) -> None:
    del tmp_path
    with server.client() as client:
        (name,) = [
            x["name"]
            for x in client.get("/models").json()["models"]
            if x["task"] == "encoder_decoder"
        ]
        body = {"model": name, "source": "a cat in a hat", "max_tokens": 30}
        plain = client.post("/translate", json=body).json()
        events = parsed(client.post("/translate", json=body | {"stream": True}).content)
    assert json.loads(events[-1].data) == plain
    text = "".join(json.loads(event.data)["text"] for event in events[:-1])
    assert text == plain["results"][0]["hypotheses"][0]["text"]


# --- streamed bodies ------------------------------------------------------------------------------

LINES = {"Content-Type": "text/plain"}
PATHS = ["/score?model=tiny-lstm", "/classify?model=tiny-text", "/tag?model=tiny-bio"]


@pytest.mark.parametrize("path", PATHS)
def test_a_line_is_answered_while_the_body_is_open(server: Server, path: str) -> None:
    """As `tail -f log | curl -T . …`: one line in, one line out, for as long as it goes."""
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("there is no curl")
    url = f"{server.url}{path}"
    command = [curl, "-sN", "-X", "POST", "-T", ".", "-H", "Content-Type: text/plain", url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for number, text in enumerate(["a cat", "a hat", ""], 1):
            process.stdin.write(f"{text}\n".encode())
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            assert answer["line"] == number
            assert "error" not in answer
        process.stdin.close()
        assert process.stdout.read() == b""
    assert process.returncode == 0


def test_a_large_stream_is_scored_in_constant_memory(server: Server, tmp_path: Path) -> None:
    # curl: unlike httpx it reads while it writes, as the answers are longer than the lines.
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("there is no curl")
    line = b"the white rabbit was late for tea, and alice saw a cat in a hat\n"
    url = f"{server.url}/score?model=tiny-lstm"

    def streamed(lines: int) -> int:
        (tmp_path / "text").write_bytes(line * lines)
        command = [curl, "-sN", "-X", "POST", "-T", f"{tmp_path}/text", "-H", "Expect:"]
        answer = subprocess.run(
            [*command, "-H", "Content-Type: text/plain", url], capture_output=True, check=True
        )
        return len(answer.stdout.splitlines())

    assert streamed(16_384) == 16_384  # 1 MiB, and what the allocator keeps for it
    before = server.resident_bytes()
    assert streamed(65_536) == 65_536  # 4 MiB, and 13 MiB of answers
    assert server.resident_bytes() - before < 3 * 2**20


@pytest.mark.parametrize("path", PATHS)
def test_a_client_that_reads_nothing_is_not_read_from_either(server: Server, path: str) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n"
    piece = b"a cat in a hat\n" * 1000
    before = server.resident_bytes()
    with socket.create_connection((host, int(port)), timeout=3) as connection:
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        sent = 0
        chunk = f"{len(piece):x}\r\n".encode() + piece + b"\r\n"
        try:
            while sent < 400 * len(piece):
                connection.sendall(chunk)
                sent += len(piece)
        except TimeoutError:
            pass
        assert sent < 400 * len(piece)
    assert server.resident_bytes() - before < 16 * 2**20
    with server.client() as client:
        assert client.get("/livez").status_code == 200


def test_a_client_that_expects_it_is_told_to_continue(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    head = (
        "POST /score?model=tiny-lstm HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n"
        "Content-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(head.encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 100 ")
        connection.sendall(b"a\n")
        whole = b""
        while part := connection.recv(65536):
            whole += part
    assert b"logprob" in whole
