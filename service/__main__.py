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

# Connections that are still open when all is over: idle ones, and those that never end.
_CLOSE_S = 2
# For a worker to answer its parent, which it does once it has started: uvicorn's 5 s ended workers
# that a busy machine starts slowly, again and again.
_WORKER_ANSWER_S = 20
_KEPT_SIGNALS = (signal.SIGINT, signal.SIGTERM)

logger = logging.getLogger("service")


def main() -> int:
    """Serve until a signal; the exit status: 0 after a clean end, 2 for a bad setting, 1 else.

    With a command first (`generate`, `score`, `translate`, `models`, `keys`) that is run instead.
    """
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        return cli.run(sys.argv[1:])
    bound_arenas(os.environ)
    # Until a server takes signals, they end the process, and in order.
    for number in _KEPT_SIGNALS:
        signal.signal(number, _end_early)
    try:
        settings = load_settings(sys.argv[1:], os.environ)
        log_to_stderr(settings)
        _remark_on(os.environ)
        logger.info("settings: %s", json.dumps(settings.redacted()))
        _check_shared_folder(settings)
        # Before the models, which take their time: a port in use is known at once.
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
    # uvicorn ends in order on the first signal and then raises it again for whoever handled it
    # before: nobody, so that a clean end is an exit status of 0.
    for number in _KEPT_SIGNALS:
        signal.signal(number, _ended_in_order)
    if settings.workers > 1:
        # The models were opened to refuse what cannot be served; each worker opens its own.
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
        # All is over: another signal would only spoil the exit status.
        signal.signal(number, signal.SIG_IGN)
    return 1 if app.state.lifecycle.fatal else 0


def create_worker() -> FastAPI:
    """The application of one of several server processes: uvicorn's workers import it by name.

    It has the parent's environment, and its command line too: multiprocessing hands that on.
    """
    bound_arenas(os.environ)
    settings = load_settings(sys.argv[1:], os.environ)
    log_to_stderr(settings)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    try:
        app = create_app(settings)
        app.state.registry.load_all(_give_up_worker)
    except (SettingsError, ApiKeysError, BundleError) as error:
        logger.error("this worker cannot start: %s", error)  # noqa: TRY400 (told, not a bug)
        sys.exit(STARTUP_FAILURE)
    return _drained(app)


def _give_up(cause: str) -> None:
    """End a start that hangs in onnxruntime, which nothing interrupts."""
    sys.stderr.write(f"error: {cause}\n")
    sys.stderr.flush()
    os._exit(1)


def _give_up_worker(cause: str) -> None:
    logger.error("this worker cannot start: %s", cause)
    os._exit(STARTUP_FAILURE)


def _drained(app: FastAPI) -> FastAPI:
    """The application, whose process ends in order; uvicorn calls this in the event loop."""
    # What is there by now stays: a collection that walked it would hold up everyone for 0.1 s.
    gc.collect()
    gc.freeze()
    state = app.state
    # Held, since nobody else does.
    state.drain = Drain(state.settings, state.lifecycle, state.registry)
    return app


def _with_own_names(settings: Settings, sockets: list[socket.socket]) -> Settings:
    """Settings that answer for this machine's names alone where it alone is listened to.

    A name may stand for a loopback address, as this machine's own does on many systems.
    """
    is_said = settings.allowed_hosts is not None or settings.hosts is not None
    if is_said or not all_loopback(sockets):
        return settings
    names = ",".join((*LOOPBACK, settings.host))
    # For the workers, which read their settings from it.
    os.environ[f"{PREFIX}ALLOWED_HOSTS"] = names
    return settings.model_copy(update={"allowed_hosts": names})


def _share_state_key(settings: Settings) -> None:
    """One key for all workers where none was given: they have this process's environment."""
    if settings.state_key is None:
        os.environ[f"{PREFIX}STATE_KEY"] = settings.signing_key().get_secret_value()


@contextmanager
def _shared_numbers(settings: Settings) -> Iterator[None]:
    """A folder in which the workers share what they measure."""
    if SHARED_FOLDER in os.environ:
        forget_this_process()
        yield
        return
    try:
        made = tempfile.TemporaryDirectory(prefix="unroll-metrics-", ignore_cleanup_errors=True)
    except OSError as error:
        cause = f"no folder for shared metrics can be made ({error.strerror}); set TMPDIR"
        logger.warning("%s; each worker tells its own numbers", cause)
        yield
        return
    with made as folder:
        lack = lacks_room(Path(folder), settings.workers)
        if lack is None:
            os.environ[SHARED_FOLDER] = folder
        else:
            logger.warning("%s; each worker tells its own numbers", lack)
        yield


def _check_shared_folder(settings: Settings) -> None:
    """Raise SettingsError where the folder for metrics that was named cannot be used."""
    if SHARED_FOLDER in os.environ:
        lack = lacks_room(Path(os.environ[SHARED_FOLDER]), settings.workers)
        if lack is not None:
            raise SettingsError(f"{SHARED_FOLDER}: {lack}")


def _end_with_parent() -> None:
    """A parent that is killed tells nobody, and its workers would hold the port for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _remark_on(environment: Mapping[str, str]) -> None:
    """Log what was passed over in the environment; no value of it."""
    for sentence in unknown_variables(environment, KNOWN):
        logger.warning("%s", sentence)
    links = service_links(environment)
    if links:
        logger.info("passed over as links to a service (Kubernetes): %s", ", ".join(links))


class _Server(uvicorn.Server):
    """Says where it listens once it does; uvicorn does not where it is handed sockets."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        # By ourselves, since not every event loop says that it cannot.
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
        # Nobody's word is taken for where a request comes from.
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
