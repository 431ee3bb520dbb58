"""uvicorn's server with our configuration: alone, or as one of several processes."""

import gc
import logging
import math
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from service.drain import Drain
from service.http.listener import listen, url_of
from service.http.protocol import BoundedProtocol
from service.processes.acceptor import Acceptor, ConnectionCounts
from service.processes.link import Link
from service.settings import Settings

# How long uvicorn waits for connections still open at the end: idle ones and those that never end.
CLOSE_S = 2

logger = logging.getLogger("service")


class Alone(uvicorn.Server):
    """The only server process."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(_config(lambda: _drained(app), settings))
        self._app = app
        self._sockets: list[socket.socket] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and log the address; uvicorn does not when it is given sockets."""
        self._sockets = sockets or []
        self._app.state.drain.refuse = self._refuse
        # Here, because not every event loop reports a failure to listen.
        listen(sockets or [])
        await super().startup(sockets)
        if self.started:
            tell_where(sockets or [])

    def _refuse(self) -> None:
        connections = self.server_state.connections
        counts = ConnectionCounts(1)
        Acceptor(self._sockets, self._protocol, connections, counts, 0).refuse()
        for server in self.servers:
            server.close()

    def _protocol(self) -> BoundedProtocol:
        return BoundedProtocol(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )


class OneOfSeveral(uvicorn.Server):
    """A server process beside others, which a supervisor looks after."""

    def __init__(
        self, app: FastAPI, settings: Settings, link: Link, counts: ConnectionCounts, place: int
    ) -> None:
        super().__init__(_config(lambda: _drained(app, is_told=True), settings))
        self._app = app
        self._link = link
        self._counts = counts
        self._place = place
        self._acceptor: Acceptor | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections in turn with the other processes, and listen to the supervisor."""
        await super().startup(sockets=[])
        connections = self.server_state.connections
        self._acceptor = Acceptor(
            sockets or [], self._protocol, connections, self._counts, self._place
        )
        self._acceptor.start()
        self._app.state.drain.refuse = self._refuse
        self._link.start(self._app.state.drain)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more, and end the rest as uvicorn does."""
        if self._acceptor is not None:
            self._acceptor.close()
        await super().shutdown(sockets)
        self._link.close()

    def _refuse(self) -> None:
        if self._acceptor is None:
            return
        if self._link.all_leave:
            self._acceptor.refuse()
        else:
            self._acceptor.close()  # the other processes go on

    def _protocol(self) -> BoundedProtocol:
        protocol = _Counted(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        if self._acceptor is not None:
            protocol.on_lost = self._acceptor.show
        return protocol


class _Counted(BoundedProtocol):
    """A connection whose end counts at once."""

    on_lost: Callable[[], object] | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        super().connection_lost(exc)
        if self.on_lost is not None:
            self.on_lost()


def tell_where(sockets: list[socket.socket]) -> None:
    """Log the addresses."""
    logger.info("listening on %s", ", ".join(url_of(x) for x in sockets))


def _drained(app: FastAPI, *, is_told: bool = False) -> FastAPI:
    """The application with a `Drain` for its process; uvicorn calls this in the event loop."""
    # Objects alive by now stay alive: a collection that walked them would stall requests for 0.1 s.
    gc.collect()
    gc.freeze()
    state = app.state
    # Keeps a reference: nothing else does.
    state.drain = Drain(state.settings, state.lifecycle, state.registry, is_told=is_told)
    return app


def _config(app: Callable[[], FastAPI], settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        factory=True,
        log_config=None,  # ours
        log_level=settings.log_level,
        access_log=False,
        http=BoundedProtocol,
        ws="none",
        server_header=False,
        timeout_keep_alive=math.ceil(settings.keep_alive_s),
        # X-Forwarded-* is not trusted: any client can send it.
        proxy_headers=False,
        timeout_graceful_shutdown=CLOSE_S,
    )
