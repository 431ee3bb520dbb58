"""The page at `/` and the documentation at `/docs`: served from our own files alone."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from service.settings import Settings

PAGE_DIR = Path(__file__).parents[1] / "page"
INDEX, DOCS = "index.html", "docs.html"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# No inline script, no inline style, no other origin: a model's text cannot become code.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors "
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Browsers check each time: after an update of the service, the new page shows at once.
    "Cache-Control": "no-cache",
}

_REFERENCE = re.compile(rb'\b(href|src)="(?!#|[a-z]+:)')

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file of the page, in memory."""

    content: bytes
    media_type: str
    etag: str


def read_page(folder: Path = PAGE_DIR) -> Mapping[str, PageFile]:
    """Every file of the page, by its path below the folder."""
    return {
        path.relative_to(folder).as_posix(): _page_file(path)
        for path in sorted(folder.rglob("*"))
        if path.suffix in MEDIA_TYPES
    }


def _page_file(path: Path) -> PageFile:
    content = path.read_bytes()
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    return PageFile(content, MEDIA_TYPES[PurePosixPath(path).suffix], etag)


@router.get("/")
async def index(request: Request) -> Response:
    """The page."""
    return _answer(request, INDEX)


@router.get("/docs")
async def docs(request: Request) -> Response:
    """The documentation of the HTTP interface."""
    return _answer(request, DOCS)


@router.get("/page/{name:path}")
async def page_file(name: str, request: Request) -> Response:
    """A style, a script or a picture of the page."""
    return _answer(request, name)


def _answer(request: Request, name: str) -> Response:
    """A file by its name, looked up in memory; 304 if the client already has it."""
    files: Mapping[str, PageFile] = request.app.state.page
    if name not in files:
        raise HTTPException(404)
    found = files[name]
    settings: Settings = request.app.state.settings
    policy = POLICY + settings.framers
    headers = {**HEADERS, "Content-Security-Policy": policy, "ETag": found.etag}
    if _is_known(request.headers.get("if-none-match", ""), found.etag):
        return Response(status_code=304, headers=headers)
    content = found.content
    base = request.scope.get("unroll.base")
    if base is not None and name.endswith(".html"):
        # For a path with a trailing slash, or for the prefix without one.
        content = _REFERENCE.sub(rb'\1="' + base.encode("ascii"), content)
    return Response(content, headers=headers, media_type=found.media_type)


def _is_known(if_none_match: str, etag: str) -> bool:
    """Whether `If-None-Match` names the tag (RFC 9110, 13.1.2: a weak comparison)."""
    tags = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return bool(tags & {etag, "*"})
