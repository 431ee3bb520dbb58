"""The files of the page: what they are served with, and that there are no others."""

import hashlib
import re
from collections.abc import Iterator
from urllib.parse import urljoin

import pytest

from service.app import create_app
from service.endpoints.page import MEDIA_TYPES, PAGE_DIR, read_page
from service.settings import Settings
from tests.fakes import AppClient

FILES = sorted(read_page())
VENDORED = {
    "swagger-ui-bundle.js": "e6a898692f2d768e807c3ba4626068a69a2c5dd960dd6c76f3e4d3a3de180af2",
    "swagger-ui.css": "5ed08757e53da3e026d6cbecc61fe5d43585c9560b302d534ad56692519a273d",
}
LIMIT_BYTES = 135_000  # of the page itself


@pytest.fixture(scope="module")
def client() -> Iterator[AppClient]:
    with AppClient(create_app(Settings(), [])) as running:
        yield running


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/docs", "text/html; charset=utf-8"),
        ("/page/style.css", "text/css; charset=utf-8"),
        ("/page/main.js", "text/javascript; charset=utf-8"),
        ("/page/icon.svg", "image/svg+xml"),
        ("/page/vendor/swagger-ui-bundle.js", "text/javascript; charset=utf-8"),
    ],
)
def test_a_file_comes_with_its_media_type_and_a_strict_policy(
    client: AppClient, path: str, media_type: str
) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == media_type
    policy = dict(x.split(" ", 1) for x in answer.headers["Content-Security-Policy"].split("; "))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "connect-src": "'self'",
        "img-src": "'self' data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Cache-Control"] == "no-cache"
    assert answer.headers["X-Request-Id"]


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_served_as_it_stands_on_disk(client: AppClient, name: str) -> None:
    answer = client.get(f"/page/{name}")
    assert answer.content == (PAGE_DIR / name).read_bytes()


def test_the_documentation_finds_its_files_with_a_slash_at_its_end(client: AppClient) -> None:
    page = client.get("/docs/").text
    assert 'href="../openapi.json"' in page
    for reference in re.findall(r'(?:href|src)="([^"#]+)"', page):
        assert client.get(urljoin("/docs/", reference)).status_code == 200
    assert "../" not in client.get("/docs").text


def test_others_may_show_the_page_in_a_frame_where_they_are_named() -> None:
    settings = Settings(frame_ancestors="self, https://portal.example/")
    with AppClient(create_app(settings, [])) as client:
        policy = client.get("/").headers["Content-Security-Policy"]
        assert policy.endswith("; frame-ancestors 'self' https://portal.example")
        # Answers are data, and no page.
        data = client.get("/openapi.json").headers["Content-Security-Policy"]
        assert data.endswith("; frame-ancestors 'none'")


def test_what_the_client_has_is_not_sent_again(client: AppClient) -> None:
    etag = client.get("/").headers["ETag"]
    assert re.fullmatch(r'"[0-9a-f]{32}"', etag)
    for given in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        for method in ("GET", "HEAD"):
            answer = client.request(method, "/", headers={"If-None-Match": given})
            assert (answer.status_code, answer.content) == (304, b"")
            assert answer.headers["ETag"] == etag
            assert answer.headers["Cache-Control"] == "no-cache"
    for given in ('"other"', etag.strip('"'), "", "W/"):
        assert client.get("/", headers={"If-None-Match": given}).status_code == 200
    assert client.get("/page/style.css").headers["ETag"] != etag


@pytest.mark.parametrize(
    "path",
    [
        "/page/",
        "/page/nothing.js",
        "/page/vendor",
        "/page/vendor/README.md",  # not a file of the page
        "/page/vendor/swagger-ui.LICENSE",
        "/page/../app.py",
        "/page/%2e%2e/app.py",
        "/page/..%2fapp.py",
        "/page//etc/passwd",
        "/page/%00",
        "/page/" + "x" * 10_000,
        "/redoc",
        "/docs/oauth2-redirect",
    ],
)
def test_there_is_no_other_file(client: AppClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["detail"].startswith("there is no such path")


@pytest.mark.parametrize("path", ["/", "/docs", "/page/style.css"])
def test_a_file_takes_nothing(client: AppClient, path: str) -> None:
    assert client.post(path, json={}).status_code == 405


def test_the_page_is_no_part_of_the_interface(client: AppClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert not {"/", "/docs", "/page/{name}"} & set(paths)


@pytest.mark.parametrize("name", [x for x in FILES if not x.startswith("vendor/")])
def test_no_file_of_ours_names_another_origin_or_has_code_in_its_markup(name: str) -> None:
    text = (PAGE_DIR / name).read_text()
    origins = set(re.findall(r"https?://[^\s\"')]+", text)) - {"http://www.w3.org/2000/svg"}
    assert origins == set()
    if name.endswith(".html"):
        assert not re.search(r"<style|style=|\son\w+=|<script(?![^>]* src=)", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)


def test_what_the_markup_and_the_modules_refer_to_is_there() -> None:
    for name in FILES:
        if name.startswith("vendor/"):
            continue
        text = (PAGE_DIR / name).read_text()
        for path in re.findall(r'(?:href|src)="page/([^"]+)"', text):
            assert path in FILES
        for path in re.findall(r'from "\./([^"]+)"', text):
            assert path in FILES


def test_the_page_is_small() -> None:
    own = [name for name in FILES if not name.startswith("vendor/")]
    assert sum((PAGE_DIR / name).stat().st_size for name in own) < LIMIT_BYTES


@pytest.mark.parametrize("name", VENDORED)
def test_a_vendored_file_is_the_one_that_was_pinned(name: str) -> None:
    content = (PAGE_DIR / "vendor" / name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == VENDORED[name]
    licence = (PAGE_DIR / "vendor" / "swagger-ui.LICENSE").read_text()
    assert "Apache License" in licence


def test_every_kind_of_file_has_a_media_type() -> None:
    texts = {".md", ".txt", ".LICENSE", ".NOTICE"}  # for those who read the source
    found = {path.suffix for path in PAGE_DIR.rglob("*") if path.is_file()}
    assert found <= set(MEDIA_TYPES) | texts
