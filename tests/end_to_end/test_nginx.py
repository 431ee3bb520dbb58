"""`docker/nginx` in front of several replicas: what it repeats, and what it passes on as it is."""

import collections
import contextlib
import http.client
import json
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from io import BufferedIOBase
from pathlib import Path

import httpx
import pytest

from bench.nginx import CONFIGURATION, Front, found_nginx, nginx
from service.bundle.store import write_bundle
from tests.bundles import tiny_files
from tests.end_to_end.server import NO_CERTIFICATES, Server, serve
from tests.end_to_end.upstreams import answering, cutting, refusing, upstream

pytestmark = pytest.mark.skipif(found_nginx() is None, reason="nginx is not here; run: make nginx")

RESOLVES = (1, 27, 3)  # the first nginx that follows names in an `upstream`
JSON = {"Content-Type": "application/json"}
SCORE = {"model": "tiny-lstm", "text": "a cat"}


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_bundle(folder, *tiny_files("lstm"))
    return folder


@pytest.fixture(scope="module")
def server(models_dir: Path) -> Iterator[Server]:
    with serve(models_dir, engine_threads=1) as running:
        yield running


@pytest.fixture(scope="module")
def front(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """nginx in front of a real server."""
    with nginx([server.url.removeprefix("http://")], tmp_path_factory.mktemp("nginx")) as running:
        yield running


def client_of(running: Front) -> httpx.Client:
    return httpx.Client(base_url=running.url, timeout=30, verify=NO_CERTIFICATES)


# --- what is repeated -----------------------------------------------------------------------------


def test_a_post_goes_to_another_replica_if_one_refuses_the_connection(tmp_path: Path) -> None:
    with (
        refusing() as gone,
        upstream(answering("200 OK")) as there,
        nginx([gone, there.address], tmp_path) as running,
        client_of(running) as client,
    ):
        assert {client.post("/score", json=SCORE).status_code for _ in range(6)} == {200}
        assert there.posts == 6


def test_a_post_that_may_have_begun_is_not_repeated(tmp_path: Path) -> None:
    with (
        upstream(cutting) as broken,
        upstream(answering("200 OK")) as whole,
        nginx([broken.address, whole.address], tmp_path) as running,
        client_of(running) as client,
    ):
        answers = [client.post("/score", json=SCORE) for _ in range(6)]
        assert broken.posts >= 1
        assert broken.posts + whole.posts == 6
        lost = [x for x in answers if x.status_code == 502]
        assert len(lost) == broken.posts
        assert lost[0].headers["Content-Type"] == "application/problem+json"
        assert lost[0].headers["Retry-After"] == "1"
        assert lost[0].json()["type"] == "replica-lost"


def test_a_get_is_repeated_after_a_broken_connection_and_a_503(tmp_path: Path) -> None:
    with (
        upstream(cutting) as broken,
        upstream(answering("503 Service Unavailable")) as leaving,
        upstream(answering("200 OK")) as whole,
        nginx([broken.address, leaving.address, whole.address], tmp_path) as running,
        client_of(running) as client,
    ):
        assert {client.get("/models").status_code for _ in range(6)} == {200}
        assert broken.heads
        assert leaving.heads


@pytest.mark.parametrize("status", ["429 Too Many Requests", "503 Service Unavailable"])
def test_a_refusal_is_passed_on_with_its_words_and_its_retry_after(
    tmp_path: Path, status: str
) -> None:
    refusal = b'{"type":"queue-full","request_id":"r1"}'
    with (
        upstream(answering(status, refusal, "Retry-After: 7")) as full,
        upstream(answering(status, refusal, "Retry-After: 7")) as other,
        nginx([full.address, other.address], tmp_path) as running,
        client_of(running) as client,
    ):
        answer = client.post("/score", json=SCORE)
        assert (answer.status_code, answer.content) == (int(status[:3]), refusal)
        assert answer.headers["Retry-After"] == "7"
        assert full.posts + other.posts == 1


def test_a_replica_that_shuts_down_loses_no_request(
    server: Server, models_dir: Path, tmp_path: Path
) -> None:
    counts: collections.Counter[int] = collections.Counter()
    ended = threading.Event()

    def load(url: str) -> None:
        with httpx.Client(base_url=url, timeout=30, verify=NO_CERTIFICATES) as client:
            while not ended.is_set():
                counts[client.post("/score", json=SCORE).status_code] += 1

    with serve(models_dir, engine_threads=1, lame_duck_s=1, grace_s=20) as leaving:
        addresses = [each.url.removeprefix("http://") for each in (leaving, server)]
        with nginx(addresses, tmp_path) as running:
            threads = [threading.Thread(target=load, args=(running.url,)) for _ in range(4)]
            for each in threads:
                each.start()
            leaving.process.send_signal(signal.SIGTERM)
            assert leaving.process.wait(30) == 0
            ended.set()
            for each in threads:
                each.join()
    assert set(counts) == {200}


# --- what passes as it is -------------------------------------------------------------------------


def test_an_event_passes_before_the_next_one_is_there(tmp_path: Path) -> None:
    read = threading.Event()

    def act(_: bytes, out: BufferedIOBase) -> None:
        out.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
        out.write(b"Transfer-Encoding: chunked\r\n\r\n7\r\nfirst\n\n\r\n")
        assert read.wait(20)
        out.write(b"8\r\nsecond\n\n\r\n0\r\n\r\n")

    with (
        upstream(act) as slow,
        nginx([slow.address], tmp_path) as running,
        client_of(running) as client,
        client.stream("POST", "/generate", json={"stream": True}) as answer,
    ):
        parts = answer.iter_raw()
        assert next(parts) == b"first\n\n"
        read.set()
        assert b"".join(parts) == b"second\n\n"


def test_a_streamed_score_passes_both_ways_line_by_line(front: Front) -> None:
    url = httpx.URL(front.url)
    connection = http.client.HTTPConnection(url.host, url.port, timeout=30)
    with contextlib.closing(connection):
        connection.putrequest("POST", "/score?model=tiny-lstm")
        connection.putheader("Content-Type", "text/plain")
        connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders()
        connection.send(b"6\r\na cat\n\r\n")
        answer = connection.getresponse()
        assert answer.status == 200
        first = json.loads(answer.readline())
        # The rest of the body is sent only now that the first answer is there.
        connection.send(b"6\r\na dog\n\r\n0\r\n\r\n")
        second = json.loads(answer.readline())
        assert answer.read() == b""
    assert first["logprob"] != second["logprob"]


def test_the_service_refuses_by_its_own_limits_before_the_body_has_arrived(front: Front) -> None:
    url = httpx.URL(front.url)
    connection = http.client.HTTPConnection(url.host, url.port, timeout=30)
    with contextlib.closing(connection):
        connection.putrequest("POST", "/score")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(2**30))
        connection.endheaders(b"{")
        answer = connection.getresponse()
        assert answer.status == 413
        assert json.loads(answer.read())["type"] == "body-too-large"
    with client_of(front) as client:
        long = client.get("/models", headers={"X-Long": "x" * 15_000})
        assert long.status_code == 200
        too_long = client.get("/models", headers={"X-Long": "x" * 18_000})
        assert (too_long.status_code, too_long.json()["type"]) == (431, "headers-too-large")
        foreign = client.get("/models", headers={"Host": "evil.example"})
        assert (foreign.status_code, foreign.json()["type"]) == (421, "host-not-allowed")


def test_ids_and_deadlines_reach_the_replica_and_its_own_paths_do_not(front: Front) -> None:
    with client_of(front) as client:
        answer = client.post("/score", json=SCORE, headers={"X-Request-Id": "mine"})
        assert answer.headers["X-Request-Id"] == "mine"
        late = client.post("/score", json=SCORE, headers={"X-Request-Timeout": "0.000001"})
        assert late.status_code == 504
        assert late.json()["type"] == "deadline-exceeded"
        for path in ("/metrics", "/admin/models/tiny-lstm/reload"):
            assert client.post(path).json()["type"] == "not-offered"


# --- one replica a model --------------------------------------------------------------------------


def ask_by(client: httpx.Client, way: str, name: str) -> None:
    if way == "header":
        client.post("/score", json={}, headers={"X-Unroll-Model": name})
    elif way == "path":
        client.post(f"/v2/models/{name}/infer", json={})
    else:
        client.post(f"/score?model={name}", content=b"a", headers={"Content-Type": "text/plain"})


def test_by_model_the_requests_of_a_model_go_to_one_replica(tmp_path: Path) -> None:
    names = [f"model-{number}" for number in range(20)]
    with ExitStack() as stack:
        replicas = [stack.enter_context(upstream(answering("200 OK"))) for _ in range(3)]
        addresses = [each.address for each in replicas]
        running = stack.enter_context(nginx(addresses, tmp_path, spread="by-model"))
        client = stack.enter_context(client_of(running))
        places: dict[str, set[int]] = {name: set() for name in names}
        for name in names:
            for way in ("header", "path", "query"):
                before = [each.posts for each in replicas]
                ask_by(client, way, name)
                after = [each.posts for each in replicas]
                places[name].add([b - a for a, b in zip(before, after, strict=True)].index(1))
        assert all(len(found) == 1 for found in places.values())
        assert len(set.union(*places.values())) == 3
        # Requests that name no model go anywhere.
        before = [each.posts for each in replicas]
        for _ in range(30):
            client.post("/score", json={})
        assert all(each.posts > old for each, old in zip(replicas, before, strict=True))


# --- the files that compose mounts ----------------------------------------------------------------


@pytest.mark.parametrize("spread", ["even", "by-model"])
def test_the_configuration_for_compose_is_valid(tmp_path: Path, spread: str) -> None:
    program = found_nginx() or ""
    said = subprocess.run([program, "-v"], capture_output=True, text=True, check=True).stderr
    version = tuple(int(x) for x in said.split("nginx/")[1].split()[0].split("."))
    if version < RESOLVES:
        pytest.skip(f"nginx {version} does not follow names; it takes {RESOLVES}")
    for name in ("nginx.conf", "replicas.conf", f"spread/{spread}.conf"):
        shutil.copy(CONFIGURATION / name, tmp_path)
    (tmp_path / f"{spread}.conf").rename(tmp_path / "spread.conf")
    command = [program, "-t", "-p", str(tmp_path), "-e", "stderr"]
    checked = subprocess.run(
        [*command, "-c", str(tmp_path / "nginx.conf")], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
