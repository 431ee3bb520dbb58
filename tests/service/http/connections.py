"""A connection of the server without a socket: bytes in, bytes out, a small application."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from starlette.datastructures import State
from uvicorn import Config
from uvicorn.server import ServerState

from service.http.places import Places
from service.http.protocol import BoundedProtocol
from service.http.turns import Turns
from service.http.unsent import Unsent
from service.observe.lifecycle import Lifecycle
from service.settings import Settings

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Answer: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


class Client(asyncio.Transport):
    """The transport of a client that reads at once, or not at all; collects what it was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.got = b""
        self.is_gone = False
        self.is_read = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.got += data

    def is_closing(self) -> bool:
        return self.is_gone

    def close(self) -> None:
        self.is_gone = True

    def abort(self) -> None:
        self.is_gone = True

    def write_eof(self) -> None:
        pass

    def pause_reading(self) -> None:
        self.is_read = False

    def resume_reading(self) -> None:
        self.is_read = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        found = {"socket": _Socket(), "sockname": ("127.0.0.1", 8000), "peername": ("::1", 9)}
        return found.get(name, default)


class _Socket:
    family = socket.AF_UNIX
    type = socket.SOCK_STREAM

    def setsockopt(self, *_: int) -> None:
        pass

    def getpeername(self) -> tuple[str, int]:
        return ("127.0.0.1", 9)

    def getsockname(self) -> tuple[str, int]:
        return ("127.0.0.1", 8000)


class Application:
    """An ASGI application with the state that a connection needs."""

    def __init__(self, answer: Answer, settings: Settings) -> None:
        self._answer = answer
        self.refused: list[str] = []
        self.state = State()
        self.state.settings = settings
        self.state.turns = Turns()
        self.state.places = Places(settings.max_connections, settings.stream_yield_s)
        self.state.unsent = Unsent(settings.max_unsent_bytes)
        self.state.lifecycle = Lifecycle()
        self.state.metrics = _Metrics(self.refused)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._answer(scope, receive, send)


class _Metrics:
    def __init__(self, refused: list[str]) -> None:
        self.refused = refused.append


class Server:
    """The server's end of connections to one application. Make it in a running event loop."""

    def __init__(self, answer: Answer, **settings: Any) -> None:
        self.application = Application(answer, Settings(**settings))
        self._config = Config(
            self.application,
            http=BoundedProtocol, ws="none", log_config=None, proxy_headers=False,
            server_header=False, date_header=False,
            timeout_keep_alive=self.application.state.settings.keep_alive_s,
        )  # fmt: skip
        self._config.load()
        self._state = ServerState()

    def connect(self) -> tuple[BoundedProtocol, Client]:
        """A new connection."""
        protocol = BoundedProtocol(self._config, self._state, {})
        client = Client()
        protocol.connection_made(client)
        return protocol, client


async def rounds(count: int = 5) -> None:
    """Let the event loop run for so many rounds."""
    for _ in range(count):
        await asyncio.sleep(0)
