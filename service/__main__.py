"""`python -m service`: serve the bundles of a folder over HTTP, or run a command on them."""

import json
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType

from uvicorn.config import STARTUP_FAILURE

from service.app import create_app
from service.bundle.files import BundleError
from service.cli import commands as cli
from service.cli.parser import COMMANDS
from service.environment import service_links, unknown_variables
from service.http.api_keys import ApiKeysError
from service.http.listener import ListenError, all_loopback, bound_sockets, listen
from service.observe.logs import log_to_stderr
from service.observe.metrics import (
    SHARED_FOLDER,
    forget_own_gauges,
    lacks_room,
    share_metrics,
    take_place,
)
from service.processes.acceptor import ConnectionCounts
from service.processes.link import Link
from service.processes.server import Alone, OneOfSeveral, tell_where
from service.processes.supervisor import Supervisor
from service.runtime.allocator import bound_arenas
from service.runtime.cpus import usable_cpus
from service.runtime.memory import usable_bytes
from service.setting_shares import default_workers, share_of
from service.setting_sources import KNOWN, load_settings
from service.setting_values import LOOPBACK
from service.settings import Settings, SettingsError
from service.tasks.registry import ModelRegistry

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
        workers = settings.workers or _default_workers()
        settings = settings.model_copy(update={"workers": workers})
        log_to_stderr(settings)
        _remark_on(os.environ)
        logger.info("settings: %s", json.dumps(settings.redacted()))
        # Before loading the models, which takes a while: a port in use is reported at once.
        sockets = bound_sockets(settings.host, settings.port)
        settings = _with_own_names(settings, sockets)
        return _serve_alone(settings, sockets) if workers == 1 else _serve(settings, sockets)
    except (SettingsError, ApiKeysError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except (BundleError, ListenError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


def _default_workers() -> int:
    """One process for each processor, where the system forks processes safely."""
    if not sys.platform.startswith("linux"):
        return 1
    return default_workers(usable_cpus(), usable_bytes())


def _serve_alone(settings: Settings, sockets: list[socket.socket]) -> int:
    app = create_app(settings)
    app.state.registry.load_all(_give_up)
    _keep_signals(_ended_in_order)
    server = Alone(app, settings)
    server.run(sockets)
    if not server.started:
        return STARTUP_FAILURE
    # The server has ended: another signal would only change the exit status.
    _keep_signals(signal.SIG_IGN)
    return 1 if app.state.lifecycle.fatal else 0


def _serve(settings: Settings, sockets: list[socket.socket]) -> int:
    """Serve with several processes, forks of this one, which opens the models for all of them."""
    whole, settings = settings, share_of(settings, settings.workers or 1)
    with _shared_numbers(whole):
        app = create_app(settings)
        registry: ModelRegistry = app.state.registry
        registry.load_all(_give_up)
        forget_own_gauges()
        listen(sockets)
        counts = ConnectionCounts(settings.workers or 1)

        def work(place: int, connection: Connection) -> None:
            _keep_signals(_ended_in_order)
            take_place(place)
            if place:
                # One process follows the folder for all.
                app.state.settings = settings.model_copy(update={"watch_models_s": None})
            link = Link(connection, registry)
            server = OneOfSeveral(app, settings, link, counts, place)
            server.run(sockets)
            sys.exit(1 if app.state.lifecycle.fatal else 0)

        supervisor = Supervisor(
            settings, registry, counts, work, on_serving=lambda: tell_where(sockets)
        )
        status = supervisor.run()
        _keep_signals(signal.SIG_IGN)
    return status


def _keep_signals(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    """Handle signals so that they do not change the exit status.

    uvicorn shuts down on the first signal, restores the earlier handlers and raises the signal
    again; they find this one.
    """
    for number in _KEPT_SIGNALS:
        signal.signal(number, handler)


def _give_up(cause: str) -> None:
    """End a start that hangs in onnxruntime, which cannot be interrupted."""
    sys.stderr.write(f"error: {cause}\n")
    sys.stderr.flush()
    os._exit(1)


def _with_own_names(settings: Settings, sockets: list[socket.socket]) -> Settings:
    """Settings with the default for allowed_hosts when every socket listens on a loopback address.

    The host name given may resolve to a loopback address, as a machine's own name often does.
    """
    is_said = settings.allowed_hosts is not None or settings.hosts is not None
    if is_said or not all_loopback(sockets):
        return settings
    names = ",".join((*LOOPBACK, settings.host))
    return settings.model_copy(update={"allowed_hosts": names})


@contextmanager
def _shared_numbers(settings: Settings) -> Iterator[None]:
    """A folder in which the workers share their metrics."""
    if SHARED_FOLDER in os.environ:
        folder = Path(os.environ[SHARED_FOLDER])
        lack = lacks_room(folder, settings.workers or 1)
        if lack is not None:
            raise SettingsError(f"{SHARED_FOLDER}: {lack}")
        share_metrics(folder)
        yield
        return
    try:
        made = tempfile.TemporaryDirectory(prefix="unroll-metrics-", ignore_cleanup_errors=True)
    except OSError as error:
        cause = f"cannot create a folder for shared metrics ({error.strerror}); set TMPDIR"
        logger.warning("%s; each worker reports its own metrics", cause)
        yield
        return
    with made as path:
        lack = lacks_room(Path(path), settings.workers or 1)
        if lack is None:
            share_metrics(Path(path))
        else:
            logger.warning("%s; each worker reports its own metrics", lack)
        yield


def _remark_on(environment: Mapping[str, str]) -> None:
    """Log which variables of the environment are ignored, by name only."""
    for sentence in unknown_variables(environment, KNOWN):
        logger.warning("%s", sentence)
    links = service_links(environment)
    if links:
        logger.info("ignored as links to a Kubernetes service: %s", ", ".join(links))


def _end_early(number: int, _: FrameType | None) -> None:
    logger.info("ended by %s before serving", signal.Signals(number).name)
    sys.exit(0)


def _ended_in_order(number: int, _: FrameType | None) -> None:
    logger.info("ended by %s", signal.Signals(number).name)


if __name__ == "__main__":
    sys.exit(main())
