"""Who is let in, and what every answer carries."""

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from service.app import create_app
from service.http.api_keys import new_key
from service.http.gateway import PUBLIC, PUBLIC_FOLDER
from service.observe.trace_context import parse_traceparent
from service.scheduling.admission import Held
from service.settings import Settings
from tests.fakes import AppClient

SCORE = {"model": "tiny-gru", "text": "abc"}


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A key of each role; `file` is where their hashes stand."""
    path = tmp_path_factory.mktemp("keys") / "keys"
    made = {role: new_key(f"my-{role}", role) for role in ("use", "metrics", "admin")}
    path.write_text("".join(key.line() + "\n" for _, key in made.values()))
    return {role: secret for role, (secret, _) in made.items()} | {"file": str(path)}


@pytest.fixture(scope="module")
def guarded(models_dir: Path, secrets: dict[str, str]) -> Iterator[AppClient]:
    settings = Settings(models_dir=models_dir, api_keys_file=Path(secrets["file"]))
    with AppClient(create_app(settings)) as client:
        yield client


@pytest.fixture(scope="module")
def open_client(models_dir: Path) -> Iterator[AppClient]:
    with AppClient(create_app(Settings(models_dir=models_dir))) as client:
        yield client


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def routes(app: FastAPI) -> list[tuple[str, str]]:
    """Every method and path that the application answers."""
    found = [(m, path) for path, item in app.openapi()["paths"].items() for m in item]
    found += [
        (method, route.path)
        for route in app.routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    ]
    return sorted({(method.upper(), path) for method, path in found})


# --- keys -----------------------------------------------------------------------------------------


def test_every_route_asks_for_a_key_but_those_that_are_named(guarded: AppClient) -> None:
    walked = routes(guarded.app)
    assert len(walked) > 30
    for method, path in [*walked, ("GET", "/no/such/path"), ("POST", "/page"), ("GET", "/x//")]:
        public = path in PUBLIC or path.startswith(PUBLIC_FOLDER)
        place = re.sub(r"\{[^}]*\}", "tiny-gru", path)
        answer = guarded.request(method, place)
        assert (answer.status_code == 401) is not public, (method, path)
        if not public:
            assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("role", "statuses"),
    [("use", (200, 403, 403)), ("metrics", (403, 200, 403)), ("admin", (200, 200, 200))],
)
def test_a_key_is_for_its_role(
    guarded: AppClient, secrets: dict[str, str], role: str, statuses: tuple[int, ...]
) -> None:
    headers = bearer(secrets[role])
    found = (
        guarded.post("/score", json=SCORE, headers=headers).status_code,
        guarded.get("/metrics", headers=headers).status_code,
        guarded.post("/admin/models/tiny-gru/load", headers=headers).status_code,
    )
    assert found == statuses


def test_a_key_may_come_in_a_header_of_its_own(guarded: AppClient, secrets: dict[str, str]) -> None:
    key = {"X-API-Key": secrets["use"]}
    assert guarded.post("/score", json=SCORE, headers=key).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        bearer("unroll-guess"),
        bearer(""),
        {"Authorization": "Basic dTpw"},
        {"X-API-Key": ""},
        {"X-API-Key": "ä".encode()},
    ],
)
def test_a_key_that_is_not_known_is_refused_and_not_repeated(
    guarded: AppClient, headers: dict[str, Any]
) -> None:
    answer = guarded.post("/v1/completions", json={}, headers=headers)
    assert answer.status_code == 401
    assert answer.json()["error"]["type"] == "unauthorized"
    assert "guess" not in answer.text


def test_without_keys_nobody_is_an_admin(open_client: AppClient) -> None:
    answer = open_client.post("/admin/models/tiny-gru/unload")
    assert (answer.status_code, answer.json()["type"]) == (403, "forbidden")
    assert open_client.post("/score", json=SCORE).status_code == 200
    assert open_client.get("/metrics").status_code == 200


# --- hosts, origins, headers ----------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000"])
def test_this_machines_names_are_answered(open_client: AppClient, host: str) -> None:
    assert open_client.get("/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "",
        "localhost.x:8000",
        "[::1]evil",
        "127.0.0.1:x:y",
    ],
)
def test_a_name_that_points_here_is_not_enough(open_client: AppClient, host: str) -> None:
    answer = open_client.get("/models", headers={"Host": host})
    assert (answer.status_code, answer.json()["type"]) == (421, "host-not-allowed")
    assert "evil" not in answer.text
    # Probes ask by address, and learn nothing that is worth a name.
    assert open_client.get("/livez", headers={"Host": host}).status_code == 200


def test_pages_of_other_origins_may_not_ask_unless_they_are_named(
    open_client: AppClient, models_dir: Path
) -> None:
    ask = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    preflight = open_client.request("OPTIONS", "/score", headers=ask)
    assert preflight.status_code == 204
    assert not [name for name in preflight.headers if name.startswith("access-control")]
    settings = Settings(models_dir=models_dir, cors_origins="https://page.example")
    with AppClient(create_app(settings)) as client:
        allowed = client.request("OPTIONS", "/score", headers=ask)
        assert allowed.headers["Access-Control-Allow-Origin"] == "https://page.example"
        other = client.request("OPTIONS", "/score", headers=ask | {"Origin": "https://x.example"})
        assert "Access-Control-Allow-Origin" not in other.headers


# What openai's JavaScript client has a browser ask for, and what traces and pages at home add.
ASKED = (
    "authorization,content-type,openai-organization,traceparent,tracestate,x-request-timeout,"
    "x-stainless-arch,x-stainless-lang,x-stainless-os,x-stainless-package-version,"
    "x-stainless-retry-count,x-stainless-runtime,x-stainless-runtime-version,x-stainless-timeout"
)


@pytest.mark.parametrize(
    "written",
    [
        "https://page.example",
        "https://page.example/",
        "https://PAGE.example:443",
        "https://a.example:8443/, HTTPS://page.example",
    ],
)
def test_openais_javascript_client_may_ask_from_a_page(
    secrets: dict[str, str], written: str
) -> None:
    settings = Settings(cors_origins=written, api_keys_file=Path(secrets["file"]))
    ask = {
        "Origin": "https://page.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": ASKED,
        "Access-Control-Request-Private-Network": "true",
    }
    with AppClient(create_app(settings, [])) as client:
        allowed = client.request("OPTIONS", "/v1/completions", headers=ask)
        assert allowed.status_code == 200
        assert allowed.headers["Access-Control-Allow-Origin"] == "https://page.example"
        assert allowed.headers["Access-Control-Allow-Headers"] == ASKED
        assert allowed.headers["Access-Control-Allow-Private-Network"] == "true"
        # A refusal is readable there, too.
        answer = client.post("/v1/completions", json={}, headers={"Origin": ask["Origin"]})
        assert answer.status_code == 401
        assert answer.headers["Access-Control-Allow-Origin"] == "https://page.example"
        assert "Retry-After" in answer.headers["Access-Control-Expose-Headers"]
        other = client.request(
            "OPTIONS", "/v1/completions", headers=ask | {"Origin": "https://page.example.org"}
        )
        assert "Access-Control-Allow-Origin" not in other.headers


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("POST", "/score", 200), ("POST", "/score", 422), ("GET", "/no", 404), ("GET", "/livez", 200)],
)
def test_every_answer_carries_what_browsers_go_by(
    open_client: AppClient, method: str, path: str, status: int
) -> None:
    body = {"json": SCORE if status == 200 else {}} if method == "POST" else {}
    answer = open_client.request(method, path, **body)
    assert answer.status_code == status
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"
    assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
    times = dict(part.split(";dur=") for part in answer.headers["Server-Timing"].split(", "))
    assert float(times["total"]) > 0
    if status == 200 and method == "POST":
        assert 0 < float(times["engine"]) <= float(times["total"])
        assert float(times["queue"]) >= 0


# --- methods and paths ----------------------------------------------------------------------------

OWN = {"x-request-id", "server-timing", "date"}


def test_head_is_answered_wherever_get_is_with_the_same_headers(open_client: AppClient) -> None:
    for method, path in routes(open_client.app):
        if method != "GET":
            continue
        place = re.sub(r"\{[^}]*\}", "tiny-gru", path)
        whole, head = open_client.get(place), open_client.request("HEAD", place)
        assert head.status_code == whole.status_code, path
        assert head.content == b""
        kept = OWN | {"content-length"} if path in {"/metrics", "/readyz"} else OWN  # they move
        assert {k: v for k, v in head.headers.items() if k not in kept} == {
            k: v for k, v in whole.headers.items() if k not in kept
        }
    assert open_client.request("HEAD", "/no").status_code == 404
    documented = open_client.app.openapi()["paths"].values()
    assert not [item for item in documented if "head" in item]


def test_a_slash_at_the_end_changes_nothing(guarded: AppClient, secrets: dict[str, str]) -> None:
    use = bearer(secrets["use"])
    for method, path, body in (
        ("GET", "/models", None), ("GET", "/models/tiny-gru", None), ("GET", "/livez", None),
        ("POST", "/score", SCORE), ("GET", "/no", None), ("GET", "/v1/models", None),
        ("POST", "/admin/models/tiny-gru/load", None), ("GET", "/metrics", None),
        ("GET", "/page/style.css", None),
    ):  # fmt: skip
        for headers in ({}, use):
            options: dict[str, Any] = {"headers": headers, **({"json": body} if body else {})}
            plain = guarded.request(method, path, **options)
            slashed = guarded.request(method, f"{path}/", **options)
            assert slashed.status_code == plain.status_code, path
            assert "location" not in slashed.headers
            if plain.status_code == 200:
                assert slashed.content == plain.content
    # It is counted as what it is.
    with_role = guarded.get("/metrics", headers=bearer(secrets["admin"])).text
    assert 'route="/score",status="200"' in with_role
    assert 'route="/score/"' not in with_role


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/score", "OPTIONS, POST"),
        ("/models/tiny-gru", "GET, HEAD, OPTIONS"),
        ("/page/style.css", "GET, HEAD, OPTIONS"),
        ("/v2/models/tiny-gru/generate/", "OPTIONS, POST"),
    ],
)
def test_a_method_that_is_not_taken_is_answered_with_those_that_are(
    open_client: AppClient, path: str, allow: str
) -> None:
    for method in ("DELETE", "BREW", "GET" if "POST" in allow else "POST"):
        refused = open_client.request(method, path)
        assert (refused.status_code, refused.headers["Allow"]) == (405, allow)
    asked = open_client.request("OPTIONS", path)
    assert (asked.status_code, asked.content, asked.headers["Allow"]) == (204, b"", allow)
    assert open_client.request("OPTIONS", "/no").status_code == 404


def test_a_prefix_that_a_proxy_leaves_is_taken_off(models_dir: Path) -> None:
    settings = Settings(models_dir=models_dir, root_path="/apps/unroll")
    with AppClient(create_app(settings)) as client:
        for path in ("/apps/unroll/models", "/apps/unroll/models/", "/models"):
            assert client.get(path).json() == client.get("/models").json()
        assert client.post("/apps/unroll/score", json=SCORE).status_code == 200
        assert client.post("/apps/unroll/v1/completions", json={}).json()["error"]
        assert client.get("/apps/unrollmodels").status_code == 404
        assert client.get("/openapi.json").json()["servers"] == [{"url": "/apps/unroll"}]
        assert 'src="unroll/page/main.js"' in client.get("/apps/unroll").text
        assert 'src="page/main.js"' in client.get("/apps/unroll/").text


# --- time -----------------------------------------------------------------------------------------


def test_a_client_may_ask_for_less_time(open_client: AppClient) -> None:
    body = {"model": "tiny-gru", "prompt": "a", "max_tokens": 64, "n": 16}
    answer = open_client.post("/generate", json=body, headers={"X-Request-Timeout": "0.001"})
    assert (answer.status_code, answer.json()["type"]) == (504, "deadline-exceeded")
    assert "0.001 s" in answer.json()["detail"]


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "1e3", "2 s", "", "٣"])
def test_a_time_that_is_none_is_refused(open_client: AppClient, value: str) -> None:
    headers = {"X-Request-Timeout": value.encode()}
    answer = open_client.post("/score", json=SCORE, headers=headers)
    assert (answer.status_code, answer.json()["type"]) == (422, "invalid-request")


# --- ids, traces, logs ----------------------------------------------------------------------------

TRACE = "0af7651916cd43dd8448eb211c80319c"


def test_a_request_is_logged_once_with_its_id_and_its_trace(
    open_client: AppClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "service.requests"):
        headers = {"X-Request-Id": "mine-1", "traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
        open_client.post("/score", json=SCORE, headers=headers)
        open_client.get("/no/such/secret-path")
    (first, second) = (r for r in caplog.records if r.name == "service.requests")
    assert first.getMessage().startswith("POST /score 200 in ")
    assert first.__dict__["route"] == "/score"
    assert second.getMessage().startswith("other 404 in ")
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("values", "trace_id"),
    [
        ([f"00-{TRACE}-b7ad6b7169203331-01"], TRACE),
        ([f"cc-{TRACE}-b7ad6b7169203331-01-what-the-future-brings"], TRACE),
        ([f"00-{TRACE}-b7ad6b7169203331-01-x"], None),
        ([f"ff-{TRACE}-b7ad6b7169203331-01"], None),
        ([f"00-{'0' * 32}-b7ad6b7169203331-01"], None),
        ([f"00-{TRACE}-{'0' * 16}-01"], None),
        ([f"00-{TRACE.upper()}-b7ad6b7169203331-01"], None),
        ([f"00-{TRACE}-b7ad6b7169203331-01"] * 2, None),
        ([], None),
    ],
)
def test_a_trace_is_taken_on_as_the_specification_has_it(
    values: list[str], trace_id: str | None
) -> None:
    found = parse_traceparent(values)
    assert (found and found.trace_id) == trace_id


# --- metrics --------------------------------------------------------------------------------------


def samples(client: AppClient) -> dict[str, float]:
    lines = client.get("/metrics").text.splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def test_what_is_asked_is_counted(open_client: AppClient) -> None:
    before = samples(open_client)
    body = {"model": "tiny-gru", "prompt": "ab", "max_tokens": 7, "logit_bias": {"\ue002": -100}}
    used = open_client.ask("/generate", **body)["usage"]
    open_client.post("/score", json={})
    after = samples(open_client)

    def moved(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    assert moved('unroll_requests_total{route="/generate",status="200"}') == 1
    assert moved('unroll_requests_total{route="/score",status="422"}') == 1
    assert moved('unroll_rejected_total{reason="invalid-request"}') == 1
    model = 'model="tiny-gru"'
    assert moved(f'unroll_tokens_total{{kind="completion",{model}}}') == used["completion_tokens"]
    assert moved(f'unroll_tokens_total{{kind="prompt",{model}}}') == used["prompt_tokens"]
    for name in ("queue", "time_to_first_token", "time_per_token"):
        assert moved(f"unroll_{name}_seconds_count{{{model}}}") == 1
    assert moved(f"unroll_step_seconds_count{{{model}}}") >= used["completion_tokens"]
    assert moved(f"unroll_step_rows_sum{{{model}}}") >= used["completion_tokens"]
    assert after[f'unroll_rows{{{model},state="running"}}'] == 0
    assert after["unroll_ready"] == 1
    info = [name for name in after if name.startswith("unroll_model_info{") and model in name]
    assert len(info) == 1
    assert 'task="language_model"' in info[0]


def test_made_up_names_make_no_new_series(open_client: AppClient) -> None:
    open_client.post("/score", json={"model": "made-up", "text": "a"})
    open_client.get("/made-up")
    open_client.get("/models/made-up")
    before = set(samples(open_client))
    for i in range(200):
        open_client.post("/score", json={"model": f"made-up-{i}", "text": "a"})
        open_client.get(f"/models/made-up-{i}")
        open_client.get(f"/made-up-{i}")
        open_client.request("BREW", f"/made/up/{i}")
    assert set(samples(open_client)) == before
    assert "made-up" not in json.dumps(sorted(before))


def test_full_queues_refuse_before_the_body_is_read_and_streams_find_their_place(
    models_dir: Path,
) -> None:
    settings = Settings(models_dir=models_dir, engine_threads=1)
    with AppClient(create_app(settings)) as client:
        engines = client.app.state.registry.engines.values()
        held = [engine.workers.schedulers[0]._admission for engine in engines]
        for admission in held:
            admission.join("", Held(settings.max_queue_requests, 1, 1))
        refused = client.post("/score", content=b"{", headers={"Content-Type": "application/json"})
        assert (refused.status_code, refused.json()["type"]) == (429, "queue-full")
        assert int(refused.headers["Retry-After"]) >= 1
        held[0].leave("", Held(settings.max_queue_requests, 1, 1))
        # Known now: one of them has room, and which it is stands in the body.
        answer = client.post("/score", content=b"{", headers={"Content-Type": "application/json"})
        assert answer.status_code == 400
        for admission in held[1:]:
            admission.leave("", Held(settings.max_queue_requests, 1, 1))
        lines = {"Content-Type": "text/plain"}
        path = "/score?model=tiny-gru"
        assert client.post(path, content=b"abc\n", headers=lines).status_code == 200
