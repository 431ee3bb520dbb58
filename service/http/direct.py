"""Calls routes that take the raw request directly, without the layers between an app and a route.

FastAPI and Starlette take a request through six middlewares, a list of path patterns and a
dependency graph, and its answer back through four wrappers of `send`. A route that reads its body
itself needs none of them. It is declared and documented through FastAPI all the same.
"""

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TypeAlias

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import ServiceError

Render: TypeAlias = Callable[[Request, ServiceError], Response]
# By method and path.
DirectRoutes: TypeAlias = Mapping[tuple[str, str], APIRoute]


def direct_routes(routers: Iterable[APIRouter]) -> DirectRoutes:
    """The routes with a fixed path that take only a request and return a response."""
    return {
        (method, route.path): route
        for router in routers
        for route in router.routes
        if isinstance(route, APIRoute) and _is_raw(route)
        for method in route.methods or ()
    }


def _is_raw(route: APIRoute) -> bool:
    signature = inspect.signature(route.endpoint)
    taken = [parameter.annotation for parameter in signature.parameters.values()]
    plain = taken == [Request] and signature.return_annotation is Response
    return plain and "{" not in route.path and not route.dependencies


class Direct:
    """ASGI: a direct route if there is one for method and path, else the application."""

    def __init__(
        self,
        app: ASGIApp,
        routes: DirectRoutes,
        render: Render,
        bug: Callable[[Request, Exception], Awaitable[Response]],
    ) -> None:
        """`render` makes the answer for an error, and `bug` the one for any other exception."""
        self._app = app
        self._routes = routes
        self._render = render
        self._bug = bug

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer (ASGI 3)."""
        route = self._routes.get((scope["method"], scope["path"]))
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        request = Request(scope, receive, send)
        try:
            response = await route.endpoint(request)
        except ServiceError as error:
            response = self._render(request, error)
        except Exception as error:
            await (await self._bug(request, error))(scope, receive, send)
            raise  # for the server's log
        await response(scope, receive, send)
