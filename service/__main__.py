"""`python -m service`: serve the bundles of a folder over HTTP, or run a command on them."""

import gc
import json
import logging
import math
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.config import STARTUP_FAILURE

from service.app import create_app
from service.bundle.files import BundleError
from service.cli import commands as cli
from service.cli.parser import COMMANDS
from service.drain import Drain
from service.environment import PREFIX, service_links, unknown_variables
from service.http.api_keys import ApiKeysError
from service.http.listener import ListenError, all_loopback, bound_sockets, listen, url_of
from service.http.protocol import BoundedProtocol
from service.observe.logs import log_to_stderr
from service.observe.metrics import SHARED_FOLDER, forget_this_process, lacks_room
from service.runtime.allocator import bound_arenas
from service.setting_sources import KNOWN, load_settings
from service.settings import LOOPBACK, Settings, SettingsError
from service.supervisor import Supervisor

# How long uvicorn waits for connections still open at the end: idle ones and those that never end.
_CLOSE_S = 2
# How long a worker may take to start and answer its parent. With uvicorn's 5 s, a busy machine on
# which workers start slowly killed them again and again.
_WORKER_ANSWER_S = 20
_KEPT_SIGNALS = (signal.SIGINT, signal.SIGTERM)

logger = logging.getLogger("service")


def main() -> int:
    """Serve until a signal. The exit status is 0 after a clean end, 2 for a bad setting, else 1.

    If the first argument is a command (such as `generate`), run that command instead.
    """
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        return cli.run(sys.argv[1:])
    bound_arenas(os.environ)
    # Until the server installs its own handlers, a signal ends the process cleanly.
    for number in _KEPT_SIGNALS:
        signal.signal(number, _end_early)
    try:
        settings = load_settings(sys.argv[1:], os.environ)
        log_to_stderr(settings)
        _remark_on(os.environ)
        logger.info("settings: %s", json.dumps(settings.redacted()))
        _check_shared_folder(settings)
        # Before loading the models, which takes a while: a port in use is reported at once.
        sockets = bound_sockets(settings.host, settings.port)
        settings = _with_own_names(settings, sockets)
        app = create_app(settings)
        app.state.registry.load_all(_give_up)
    except (SettingsError, ApiKeysError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except (BundleError, ListenError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    # uvicorn shuts down on the first signal, restores the earlier handlers and raises the signal
    # again. This handler only logs, so a clean end has exit status 0.
    for number in _KEPT_SIGNALS:
        signal.signal(number, _ended_in_order)
    if settings.workers > 1:
        # The models were opened here to report bad bundles early; each worker opens its own.
        del app
        _share_state_key(settings)
        with _shared_numbers(settings):
            supervisor = Supervisor(_config("service.__main__:create_worker", settings), sockets)
            _tell_where(sockets)
            supervisor.run()
        return 1 if supervisor.failed else 0
    try:
        _serve(lambda: _drained(app), settings, sockets)
    except ListenError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    for number in _KEPT_SIGNALS:
        # The server has ended: another signal would only change the exit status.
        signal.signal(number, signal.SIG_IGN)
    return 1 if app.state.lifecycle.fatal else 0


def create_worker() -> FastAPI:
    """The application of one of several server processes; uvicorn's workers import it by name.

    It has the parent's environment and, through multiprocessing, the parent's command line.
    """
    bound_arenas(os.environ)
    settings = load_settings(sys.argv[1:], os.environ)
    log_to_stderr(settings)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    try:
        app = create_app(settings)
        app.state.registry.load_all(_give_up_worker)
    except (SettingsError, ApiKeysError, BundleError) as error:
        logger.error("this worker cannot start: %s", error)  # noqa: TRY400 (not a bug: no traceback)
        sys.exit(STARTUP_FAILURE)
    return _drained(app)


def _give_up(cause: str) -> None:
    """End a start that hangs in onnxruntime, which cannot be interrupted."""
    sys.stderr.write(f"error: {cause}\n")
    sys.stderr.flush()
    os._exit(1)


def _give_up_worker(cause: str) -> None:
    logger.error("this worker cannot start: %s", cause)
    os._exit(STARTUP_FAILURE)


def _drained(app: FastAPI) -> FastAPI:
    """The application with a `Drain` for its process; uvicorn calls this in the event loop."""
    # Objects alive by now stay alive: a collection that walked them would stall requests for 0.1 s.
    gc.collect()
    gc.freeze()
    state = app.state
    # Keeps a reference: nothing else does.
    state.drain = Drain(state.settings, state.lifecycle, state.registry)
    return app


def _with_own_names(settings: Settings, sockets: list[socket.socket]) -> Settings:
    """Settings with the default for allowed_hosts when every socket listens on a loopback address.

    The host name given may resolve to a loopback address, as a machine's own name often does.
    """
    is_said = settings.allowed_hosts is not None or settings.hosts is not None
    if is_said or not all_loopback(sockets):
        return settings
    names = ",".join((*LOOPBACK, settings.host))
    # For the workers, which read their settings from the environment.
    os.environ[f"{PREFIX}ALLOWED_HOSTS"] = names
    return settings.model_copy(update={"allowed_hosts": names})


def _share_state_key(settings: Settings) -> None:
    """Without a configured key, share one with all workers through the environment."""
    if settings.state_key is None:
        os.environ[f"{PREFIX}STATE_KEY"] = settings.signing_key().get_secret_value()


@contextmanager
def _shared_numbers(settings: Settings) -> Iterator[None]:
    """A folder in which the workers share their metrics."""
    if SHARED_FOLDER in os.environ:
        forget_this_process()
        yield
        return
    try:
        made = tempfile.TemporaryDirectory(prefix="unroll-metrics-", ignore_cleanup_errors=True)
    except OSError as error:
        cause = f"cannot create a folder for shared metrics ({error.strerror}); set TMPDIR"
        logger.warning("%s; each worker reports its own metrics", cause)
        yield
        return
    with made as folder:
        lack = lacks_room(Path(folder), settings.workers)
        if lack is None:
            os.environ[SHARED_FOLDER] = folder
        else:
            logger.warning("%s; each worker reports its own metrics", lack)
        yield


def _check_shared_folder(settings: Settings) -> None:
    """Raise SettingsError if a folder for metrics is configured and cannot be used."""
    if SHARED_FOLDER in os.environ:
        lack = lacks_room(Path(os.environ[SHARED_FOLDER]), settings.workers)
        if lack is not None:
            raise SettingsError(f"{SHARED_FOLDER}: {lack}")


def _end_with_parent() -> None:
    """End this worker when its parent dies: orphaned workers would hold the port for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _remark_on(environment: Mapping[str, str]) -> None:
    """Log which variables of the environment are ignored, by name only."""
    for sentence in unknown_variables(environment, KNOWN):
        logger.warning("%s", sentence)
    links = service_links(environment)
    if links:
        logger.info("ignored as links to a Kubernetes service: %s", ", ".join(links))


class _Server(uvicorn.Server):
    """Logs the address once it listens; uvicorn does not when it is given sockets."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        # Here, because not every event loop reports a failure to listen.
        listen(sockets or [])
        await super().startup(sockets)
        if self.started:
            _tell_where(sockets or [])


def _tell_where(sockets: list[socket.socket]) -> None:
    logger.info("listening on %s", ", ".join(url_of(x) for x in sockets))


def _serve(app: Callable[[], FastAPI], settings: Settings, sockets: list[socket.socket]) -> None:
    server = _Server(_config(app, settings))
    server.run(sockets)
    if not server.started:
        sys.exit(STARTUP_FAILURE)


def _config(app: str | Callable[[], FastAPI], settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        factory=True,
        workers=settings.workers,
        timeout_worker_healthcheck=_WORKER_ANSWER_S,
        log_config=None,  # ours
        log_level=settings.log_level,
        access_log=False,
        http=BoundedProtocol,
        ws="none",
        server_header=False,
        timeout_keep_alive=math.ceil(settings.keep_alive_s),
        # X-Forwarded-* is not trusted: any client can send it.
        proxy_headers=False,
        timeout_graceful_shutdown=_CLOSE_S,
    )


def _end_early(number: int, _: FrameType | None) -> None:
    logger.info("ended by %s before serving", signal.Signals(number).name)
    sys.exit(0)


def _ended_in_order(number: int, _: FrameType | None) -> None:
    logger.info("ended by %s", signal.Signals(number).name)


if __name__ == "__main__":
    sys.exit(main())
