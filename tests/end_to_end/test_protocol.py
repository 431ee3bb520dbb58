"""What is received has bounds: connections, heads, and the time that they take. Raw sockets."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import urljoin

import httpx
import pytest

from service.bundle.store import write_bundle
from service.cli.running_server import RunningServer
from tests.bundles import tiny_files
from tests.end_to_end.server import ROOT, Server, serve
from unroll_client import Unroll

SLOW: dict[str, Any] = {"header_timeout_s": 0.5, "body_timeout_s": 1.0, "max_connections": 40}
BODY = json.dumps({"model": "tiny-lstm", "text": "a cat"}).encode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("models")
    write_bundle(folder, *tiny_files("lstm"))
    with serve(folder, engine_threads=1, **SLOW) as running:
        yield running


def connected(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def received(connection: socket.socket) -> bytes:
    """Everything until the server closes."""
    whole = b""
    try:
        while part := connection.recv(65536):
            whole += part
    except ConnectionResetError:
        pass
    return whole


def answer(server: Server, request: bytes) -> tuple[int, Any]:
    """The status and the body of what the server says before it closes."""
    with closing(connected(server)) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(request)
        head, _, body = received(connection).partition(b"\r\n\r\n")
    assert head, "no answer"
    assert b"x-request-id" in head.lower()
    return int(head.split()[1]), json.loads(body)


def goes_on(server: Server) -> None:
    with server.client() as client:
        assert (
            client.post(
                "/score", content=BODY, headers={"Content-Type": "application/json"}
            ).status_code
            == 200
        )


def test_a_port_in_use_is_one_line_before_anything_is_loaded(server: Server) -> None:
    command = [sys.executable, "-m", "service", "--port", server.url.rpartition(":")[2]]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, timeout=60)
    assert done.returncode == 1
    lines = done.stderr.decode().splitlines()
    assert ": the port is in use; " in lines[-1]
    assert len(lines) == 2  # the settings stand in the other one


def test_this_machine_is_asked_without_the_environments_proxy(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert RunningServer(server.url, None, None).models()[0]["name"] == "tiny-lstm"
    with Unroll(server.url) as client:
        assert client.models()[0].name == "tiny-lstm"
    port = server.url.rpartition(":")[2]
    for settings, status in (({"UNROLL_HOST": "0.0.0.0"}, 0), ({"UNROLL_HOST": "192.0.2.1"}, 1)):  # noqa: S104
        environment = {**os.environ, **settings, "UNROLL_PORT": port}
        command = [sys.executable, "-m", "service.health"]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, check=False, capture_output=True, timeout=60
        )
        assert done.returncode == status


def head(*lines: str, path: str = "/score", method: str = "POST") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *lines, "", ""]).encode(
        "latin-1"
    )


@pytest.mark.parametrize(
    ("status", "kind", "request_"),
    [
        (431, "headers-too-large", head("X-Big: " + "a" * 16_000_000)),
        (431, "headers-too-large", head(*(f"X-{i}: 1" for i in range(10_000)))),
        (431, "headers-too-large", head("X-Big: " + "a" * 16_400)),
        (414, "url-too-long", head(path="/" + "a" * 65_536)),
        (414, "url-too-long", head(path="/" + "a" * 8_200)),
        (400, "bad-request", head("Content-Length: 2", "Transfer-Encoding: chunked") + b"{}"),
        (400, "bad-request", head("Content-Length: 2", "Content-Length: 3") + b"{}"),
        (400, "bad-request", head("Content-Length: -1")),
        (400, "bad-request", head("Content-Length: x")),
        (400, "bad-request", b"not http at all\r\n\r\n"),
        (400, "bad-request", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_head_that_cannot_be_is_refused_at_once(
    server: Server, status: int, kind: str, request_: bytes
) -> None:
    found, problem = answer(server, request_)
    assert (found, problem["type"]) == (status, kind)
    assert problem["status"] == status
    assert "aaaa" not in problem["detail"]
    goes_on(server)


@pytest.mark.parametrize(
    "sent",
    [b"POST /sco", head("X-Slow: 1")[:-2], b"POST /score HTTP/1.1\r\n"],
    ids=["line", "headers", "first"],
)
def test_a_slow_head_is_closed_with_its_reason(server: Server, sent: bytes) -> None:
    found, problem = answer(server, sent)
    assert (found, problem["type"]) == (408, "receipt-timeout")
    assert "0.5 s" in problem["detail"]
    goes_on(server)


@pytest.mark.parametrize("length", ["Content-Length: 100", "Transfer-Encoding: chunked"])
def test_a_slow_body_is_closed_with_its_reason(server: Server, length: str) -> None:
    found, problem = answer(server, head("Content-Type: application/json", length))
    assert (found, problem["type"]) == (408, "receipt-timeout")
    assert "1 s" in problem["detail"]
    goes_on(server)


def test_a_body_that_drips_is_closed_all_the_same(server: Server) -> None:
    with closing(connected(server)) as connection:
        connection.sendall(head("Content-Type: application/json", "Content-Length: 1000"))
        sent = 0
        try:
            while sent < 1000:
                connection.sendall(b" ")
                sent += 1
                time.sleep(0.05)
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert sent < 200
    goes_on(server)


@pytest.mark.parametrize("mode", ["lines", "total"])
def test_an_answer_that_has_begun_is_cut_off_where_its_body_breaks(
    server: Server, mode: str
) -> None:
    path = f"/score?every=1&mode={mode}"
    with closing(connected(server)) as connection:
        connection.sendall(
            head("Content-Type: text/plain", "Transfer-Encoding: chunked", path=path)
            + b"8\r\na cat\na \r\n"
        )
        whole = b""
        while b"logprob" not in whole:
            whole += connection.recv(65536)
        connection.sendall(b"no chunk\r\n")
        whole += received(connection)
    assert whole.count(b"HTTP/1.1 ") == 1
    assert not whole.endswith(b"0\r\n\r\n")
    goes_on(server)


def test_a_slow_body_behind_another_request_is_closed_all_the_same(server: Server) -> None:
    first = head("Content-Type: application/json", f"Content-Length: {len(BODY)}") + BODY
    with closing(connected(server)) as connection:
        # The second head comes while the first request is answered, its body never.
        connection.sendall(first + head("Content-Type: application/json", "Content-Length: 9"))
        whole = received(connection)
    assert whole.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 408 " in whole
    goes_on(server)


def test_a_connection_that_says_nothing_is_closed(server: Server) -> None:
    with closing(connected(server)) as connection:
        assert received(connection) == b""


def test_a_connection_lives_on_between_requests(server: Server) -> None:
    request = head("Content-Type: application/json", f"Content-Length: {len(BODY)}") + BODY
    with closing(connected(server)) as connection:
        for _ in range(3):
            connection.sendall(request)
            whole = b""
            while b"usage" not in whole:
                whole += connection.recv(65536)
            assert whole.startswith(b"HTTP/1.1 200 ")
            time.sleep(0.7)  # longer than a head may take: between requests nothing is due
        connection.sendall(request + request)  # pipelined
        whole = b""
        while whole.count(b"usage") < 2:
            whole += connection.recv(65536)


def one_answer(connection: socket.socket) -> bytes:
    """The head of the next answer, and its body if its length is told."""
    whole = b""
    while b"\r\n\r\n" not in whole:
        part = connection.recv(65536)
        assert part, "closed"
        whole += part
    head_, _, body = whole.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head_)
    while length is not None and b" 200 " in head_ and len(body) < int(length[1]):
        body += connection.recv(65536)
    return head_ + b"\r\n\r\n" + body


def test_head_leaves_the_connection_in_step(server: Server) -> None:
    with closing(connected(server)) as connection:
        for path in ("/models", "/page/main.js", "/score", "/livez/"):
            # A body after it would be read as the answer to the next request.
            connection.sendall(head(path=path, method="HEAD") + head(path="/livez", method="GET"))
            whole = b""
            while not whole.endswith(b"]}"):
                whole += connection.recv(65536)
            first, _, second = whole.partition(b"\r\n\r\n")
            assert second.startswith(b"HTTP/1.1 200")
            assert (b" 405 " in first) == (path == "/score")
            assert b"content-length: " in first


@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
def test_an_upgrade_is_ignored_and_who_asked_and_left_is_noticed(
    server: Server, protocol: str
) -> None:
    asks = ("Connection: Upgrade", f"Upgrade: {protocol}", "Content-Type: application/json")
    with closing(connected(server)) as connection:
        for _ in range(2):
            connection.sendall(head(*asks, f"Content-Length: {len(BODY)}") + BODY)
            assert one_answer(connection).startswith(b"HTTP/1.1 200 ")
    cancelled = 'unroll_cancelled_total{reason="client-gone"}'
    before = server.samples().get(cancelled, 0.0)
    long = {"model": "tiny-lstm", "prompt": ["a"] * 400, "n": 16, "max_tokens": 40}
    content = json.dumps({**long, "logit_bias": {"\ue002": -100}}).encode()
    with closing(connected(server)) as connection:
        length = f"Content-Length: {len(content)}"
        connection.sendall(head(*asks, length, path="/generate") + content)
        time.sleep(0.05)
        # What the other protocol begins with, or a next request: it may not hide that it leaves.
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        time.sleep(0.05)
    deadline = time.monotonic() + 10
    # It may have been cancelled before the engine's next step, after which the queue has room.
    queued = 'unroll_queue_requests{model="tiny-lstm"}'
    while (now := server.samples()).get(cancelled, 0.0) == before or now[queued]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    goes_on(server)


def test_connections_that_idle_between_requests_give_way(server: Server) -> None:
    with ExitStack() as held:
        idle = [held.enter_context(closing(connected(server))) for _ in range(40)]
        for connection in idle:
            connection.sendall(head(path="/livez", method="GET"))
            assert one_answer(connection).startswith(b"HTTP/1.1 200 ")
        for _ in range(2):
            newcomer = held.enter_context(closing(connected(server)))
            newcomer.sendall(head(path="/livez", method="GET"))
            assert one_answer(newcomer).startswith(b"HTTP/1.1 200 ")
        # The two that had idled for longest went, and no other.
        assert [x.recv(1) for x in idle[:2]] == [b"", b""]
        idle[2].sendall(head(path="/livez", method="GET"))
        assert one_answer(idle[2]).startswith(b"HTTP/1.1 200 ")


class PrefixProxy(BaseHTTPRequestHandler):
    """Passes on what begins with `/apps/unroll`, without it, as `proxy_pass http://…/` does."""

    prefix = "/apps/unroll"
    upstream: ClassVar[str] = ""

    def do_GET(self) -> None:
        if not self.path.startswith(f"{self.prefix}/"):
            self.send_error(404)
            return
        length = int(self.headers.get("Content-Length", 0))
        headers = {x: self.headers[x] for x in ("Content-Type",) if x in self.headers}
        connection = HTTPConnection(self.upstream)
        try:
            path, content = self.path.removeprefix(self.prefix), self.rfile.read(length)
            connection.request(self.command, path, content, headers)
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        self.send_response(answer.status)
        for name in ("Content-Type", "Content-Length", "Location"):
            if value := answer.getheader(name):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815 (as the base names it)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def proxied(server: Server) -> Iterator[str]:
    """The server's address below a prefix."""
    PrefixProxy.upstream = server.url.removeprefix("http://")
    with ThreadingHTTPServer(("127.0.0.1", 0), PrefixProxy) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{proxy.server_port}{PrefixProxy.prefix}"
        proxy.shutdown()
        thread.join()


def test_the_pages_and_what_they_ask_work_below_a_proxys_prefix(proxied: str) -> None:
    with httpx.Client(timeout=60) as client:  # of a busy machine
        for page in (f"{proxied}/", f"{proxied}/docs", f"{proxied}/docs/"):
            found = re.findall(r'(?:href|src)="([^"#]+)"', client.get(page).text)
            assert len(found) >= 4
            for reference in found:
                assert client.get(urljoin(page, reference)).status_code == 200, reference
        # Modules name each other relative to themselves, and the service beside their folder.
        script = client.get(f"{proxied}/page/api.js").text
        assert 'new URL("../", import.meta.url)' in script
        # "Try it out" asks where the document says, which is relative to the document.
        where = f"{proxied}/openapi.json"
        (described,) = client.get(where).json()["servers"]
        base = urljoin(where, described["url"]).rstrip("/")
        asked = client.post(
            f"{base}/score", content=BODY, headers={"Content-Type": "application/json"}
        )
        assert asked.status_code == 200
    with Unroll(proxied) as unroll:
        assert unroll.models()[0].name == "tiny-lstm"


def test_connections_are_counted_and_the_next_one_is_refused(server: Server) -> None:
    held = [connected(server) for _ in range(45)]
    try:
        statuses = []
        for connection in held[40:]:
            reply = received(connection)
            statuses.append(reply[:12])
            assert b"Retry-After: 1\r\n" in reply
        assert set(statuses) == {b"HTTP/1.1 503"}
    finally:
        for connection in held:
            connection.close()
    deadline = time.monotonic() + 20
    while True:
        try:
            goes_on(server)
            break
        except AssertionError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
