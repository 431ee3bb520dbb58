"""Work that has to come after its limit: marks, sources, ids, unknown characters, stalled streams.

Each is sent at its full size to a server with the default limits, and others are answered
meanwhile.
"""

import asyncio
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest

from service.bundle.language_model import LanguageModelLimits
from service.bundle.store import write_bundle
from tests.bundles import tiny_encoder_decoder_files, tiny_files
from tests.end_to_end.server import Server, serve
from tests.faults.conftest import tiny_labelers
from tests.faults.support import eventually, goes_on, rows_in_use

SIZE = 8 * 2**20 - 1000
# A machine that has other work: what these did before took from five seconds to hours.
LONGEST_PAUSE_S = 1.0
MARKS = "\u0301\u0323"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("models")
    write_bundle(folder, *tiny_files("lstm", limits=LanguageModelLimits(max_tokens=100_000)))
    write_bundle(folder, *tiny_encoder_decoder_files("gru", name="tiny-pairs"))
    for manifest, files in tiny_labelers():
        write_bundle(folder, manifest, files)
    with serve(folder, log_level="warning") as running:
        yield running


@contextmanager
def others_are_answered(server: Server) -> Iterator[None]:
    """Nobody waits long for /livez meanwhile."""
    pauses: list[float] = []
    done = threading.Event()

    def look() -> None:
        with server.client() as client:
            while not done.is_set():
                begun = time.monotonic()
                assert client.get("/livez").status_code == 200
                pauses.append(time.monotonic() - begun)
                time.sleep(0.005)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield
    finally:
        done.set()
        looking.join()
    assert max(pauses) < LONGEST_PAUSE_S


def post(server: Server, path: str, body: bytes, media_type: str) -> httpx.Response:
    with server.client() as client:
        return client.post(path, content=body, headers={"Content-Type": media_type})


def listed(begin: str, entry: str, end: str) -> bytes:
    """A list of so many entries that the body is full."""
    count = (SIZE - len(begin) - len(end)) // (len(entry) + 1)
    return (begin + ",".join([entry] * count) + end).encode()


def encoded(**fields: Any) -> bytes:
    return json.dumps({"model": "tiny-lstm", **fields}, ensure_ascii=False).encode()


MARKED = "a" + MARKS * (SIZE // 4 - 100)
JSON = "application/json"
REFUSED = {
    "30 marks to score": ("/score", encoded(text=MARKED), JSON, "combining marks"),
    "30 marks in a prompt": ("/generate", encoded(prompt="a" + MARKS * 40_000), JSON, "marks"),
    "30 marks to tokenize": ("/tokenize", encoded(prompt="a" + MARKS * 40_000), JSON, "marks"),
    "30 marks of another client": (
        "/v1/completions", encoded(prompt="a" + MARKS * 40_000), JSON, "marks",
    ),
    "30 marks to classify": (
        "/classify", encoded(model="tiny-forward", text="a" + MARKS * 40_000), JSON, "marks",
    ),
    "30 marks to tag": ("/tag", encoded(model="tiny-chain", text=MARKED), JSON, "characters"),
    "34 a text to tag": (
        "/tag", encoded(model="tiny-chain", text="\u05d0" * (SIZE // 2 - 100)), JSON, "characters",
    ),
    "34 texts to classify": (
        "/classify", listed('{"model":"tiny-forward","text":[', '""', "]}"), JSON, "131072",
    ),
    "34 many labels": (
        "/tag",
        encoded(model="tiny-chain", text=["a" * 200] * 500, n=8, places=True, top=20),
        JSON, "details",
    ),
    "34 a source": (
        "/translate", encoded(model="tiny-pairs", source="a" * (SIZE - 100)), JSON, "characters",
    ),
    "34 a target": (
        "/score", encoded(model="tiny-pairs", source="a", text="a" * (SIZE - 100)), JSON, "charact",
    ),
    "34 ids": ("/v1/completions", listed('{"prompt":[', "5", "]}"), JSON, "131072"),
    "34 lists of ids": ("/v1/completions", listed('{"prompt":[', "[5]", "]}"), JSON, "131072"),
    "34 texts": ("/score", listed('{"text":[', '""', "]}"), JSON, "131072"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_its_limit_refuses_is_refused_before_it_costs_anything(
    server: Server, what: str
) -> None:
    path, body, media_type, said = REFUSED[what]
    with others_are_answered(server):
        answer = post(server, path, body, media_type)
    assert answer.status_code == 422, answer.text
    assert said in answer.text
    assert len(answer.content) < 1000
    goes_on(server)


def test_marks_in_a_stream_are_told_of_their_line_and_the_others_are_scored(
    server: Server,
) -> None:
    text = f"a cat\na{MARKS * 100_000}\na cat\n".encode()
    with others_are_answered(server):
        answer = post(server, "/score?model=tiny-lstm", text, "text/plain")
    first, marked, last = map(json.loads, answer.text.splitlines())
    assert "combining marks" in marked["error"]["detail"]
    assert first["logprob"] == last["logprob"]


@pytest.mark.parametrize(
    ("path", "line", "lines"),
    [
        ("/classify?model=tiny-forward&top=1", b"a bed in a cab, a bee in a bed. " * 5, 3000),
        ("/classify?model=tiny-forward&mode=total&every=10", b"a bed in a cab ", 800),
        ("/tag?model=tiny-chain", b"a bed", 1500),
    ],
    ids=["lines", "total", "tags"],
)
def test_streams_of_labels_take_no_more_memory_however_long_they_are(
    server: Server, path: str, line: bytes, lines: int
) -> None:
    async def answered(count: int) -> bytes:
        """The end of the answer, which is read while the body is sent."""
        end = b""
        headers = {"Content-Type": "text/plain"}
        async with (
            aiohttp.ClientSession(server.url) as http,
            http.post(path, data=(line + b"\n") * count, headers=headers) as answer,
        ):
            assert answer.status == 200
            async for piece in answer.content.iter_chunked(65536):
                end = (end + piece)[-4096:]
        return end

    asyncio.run(answered(lines // 3))
    before = server.resident_bytes()
    last = json.loads(asyncio.run(answered(lines)).splitlines()[-1])
    assert server.resident_bytes() - before < 8 * 2**20
    if "mode=total" in path:
        assert (last["done"], last["chars"]) == (True, lines * (len(line) + 1))
    else:
        assert (last["line"], "error" in last) == (lines, False)
    goes_on(server)


def test_positions_in_an_answer_are_bounded_and_their_number_is_told(server: Server) -> None:
    count = SIZE // 2 - 100
    with others_are_answered(server):
        answer = post(server, "/score", encoded(text="\u05d0" * count, unknown="skip"), JSON)
    (result,) = answer.json()["results"]
    assert result["unknown_chars"] == count
    assert result["unknown"] == list(range(1024))


def test_the_bodies_in_hand_share_their_bytes(tmp_path: Path) -> None:
    write_bundle(tmp_path, *tiny_files("lstm"))
    # Of a text that is too long: known when the whole body has been read.
    body = encoded(prompt="a" * 300_000)
    head = (
        b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body)
    )
    with serve(tmp_path, max_bodies_bytes=400_000, log_level="error") as server:
        host, port = server.url.removeprefix("http://").split(":")

        def status() -> int:
            return post(server, "/tokenize", body, JSON).status_code

        with socket.create_connection((host, int(port))) as slow:
            slow.sendall(head + body[:-1])  # all of them are taken now, but for the first 65,536
            eventually(lambda: status() == 429)
            goes_on(server)  # of small bodies nothing is counted
            slow.sendall(body[-1:])
            assert slow.recv(12) == b"HTTP/1.1 422"
        assert status() == 422


def test_streams_that_nobody_reads_take_little_memory_and_leave_their_rows(
    server: Server,
) -> None:
    body = encoded(prompt=["a"] * 64, max_tokens=512, stream=True, logit_bias={"\ue002": -1000.0})
    head = (
        b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body)
    )
    host, port = server.url.removeprefix("http://").split(":")
    before = server.resident_bytes()
    tokens = 'unroll_tokens_total{kind="completion",model="tiny-lstm"}'
    written = server.samples().get(tokens, 0)
    stalled = [socket.create_connection((host, int(port))) for _ in range(2)]
    for each in stalled:
        each.sendall(head + body)
    # Two of 64 x 512 tokens, which took 1.3 kB each: 85 MB.
    eventually(lambda: server.samples().get(tokens, 0) >= written + 2 * 64 * 512, timeout_s=60)
    assert server.resident_bytes() - before < 40 * 2**20
    for each in stalled:
        each.close()
    eventually(lambda: rows_in_use(server) == 0)
    goes_on(server)


@pytest.mark.parametrize(
    "field", ["[" + "[]," * 2_000_000 + "[]]", "a" + "&b" * 2_000_000, "[" + "{}," * 2_000_000]
)
def test_a_form_is_no_way_around_the_bounds(server: Server, field: str) -> None:
    body = f"source=en&target=de&q={field}".encode()
    with others_are_answered(server):
        answer = post(
            server, "/libretranslate/translate", body, "application/x-www-form-urlencoded"
        )
    assert answer.status_code == 400
    assert len(answer.content) < 1000


def test_a_line_of_many_values_is_refused_before_it_is_parsed(server: Server) -> None:
    names = ",".join(f'"{i}":0' for i in range(70_000))
    with others_are_answered(server):
        answer = post(
            server, "/score?model=tiny-lstm", f"{{{names}}}\n".encode(), "application/x-ndjson"
        )
    assert json.loads(answer.text)["error"]["status"] == 422


def test_clients_that_reset_are_forgotten_at_once(tmp_path: Path) -> None:
    write_bundle(tmp_path, *tiny_files("lstm"))
    head = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + b"a:b\r\n" * 250 + b"\r\n"
    # A server of its own: another has memory that is free.
    with serve(tmp_path, log_level="error") as server:
        host, port = server.url.removeprefix("http://").split(":")

        def reset() -> None:
            with socket.create_connection((host, int(port))) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.sendall(head)
                client.recv(12)

        for _ in range(100):
            reset()
        before = server.resident_bytes()
        for _ in range(800):
            reset()
        # Each held 20 kB for the time of a keep-alive.
        assert server.resident_bytes() - before < 6 * 2**20


def test_a_head_of_very_many_lines_is_refused(server: Server) -> None:
    with server.client() as client:
        answer = client.get("/livez", headers=[("a", "b")] * 300)
        assert answer.status_code == 431
        assert client.get("/livez", headers=[("a", "b")] * 200).status_code == 200
