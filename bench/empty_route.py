"""`python -m bench.empty_route PORT`: a FastAPI route that does nothing but read and answer.

It answers every POST with the body of the request. What it costs is what uvicorn and FastAPI cost
by themselves: no server built on them can cost less.
"""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request, Response

from bench.server import Server, free_port, running

# uvicorn chooses the same by itself.
HTTP = "httptools" if importlib.util.find_spec("httptools") else "h11"
LOOP = "uvloop" if importlib.util.find_spec("uvloop") else "asyncio"
LABEL = f"empty FastAPI route ({HTTP}, {LOOP})"


def create_app() -> FastAPI:
    """The application."""
    app = FastAPI(openapi_url=None)

    @app.get("/readyz")
    async def ready() -> Response:
        return Response()

    @app.post("/empty")
    async def empty(request: Request) -> Response:
        return Response(await request.body(), media_type="application/json")

    return app


@contextmanager
def empty_route(log: Path) -> Iterator[tuple[Server, str]]:
    """Run it in a process of its own; the server, and the URL of its route."""
    port = free_port()
    command = [sys.executable, "-m", "bench.empty_route", str(port)]
    with running(command, port, "/readyz", log) as server:
        yield server, f"{server.url}/empty"


if __name__ == "__main__":
    uvicorn.run(
        create_app(), port=int(sys.argv[1]), access_log=False, log_level="warning", http=HTTP,
        loop=LOOP,
    )  # fmt: skip
