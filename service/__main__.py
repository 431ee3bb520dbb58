"""`python -m service`: serve the bundles of a folder over HTTP, or run a command on them."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
from types import FrameType

import uvicorn
from fastapi import FastAPI

from service import cli
from service.app import create_app, load_engines
from service.bundle import BundleError
from service.protocol import BoundedProtocol
from service.settings import PREFIX, Settings, SettingsError, load_settings

GRACE_S = 10  # how long requests in flight may take to end


def main() -> int:
    """Serve until a signal; the exit status: 0 after a clean end, 2 for a bad setting, 1 else.

    With a command first (`generate`, `score`, `translate`, `models`) that is run instead.
    """
    if sys.argv[1:2] and sys.argv[1] in cli.COMMANDS:
        return cli.run(sys.argv[1:])
    try:
        settings = load_settings(sys.argv[1:], os.environ)
    except SettingsError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    _log_to_stderr(settings)
    try:
        engines = load_engines(settings)
    except BundleError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    # uvicorn ends in order on the first signal and then raises it again for whoever handled it
    # before: nobody, so that a clean end is an exit status of 0.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _ended_in_order)
    if settings.workers > 1:
        # The engines were opened to refuse what cannot be served; each worker opens its own.
        engines.clear()
        _share_state_key(settings)
        _serve("service.__main__:create_worker", settings)
    else:
        _serve(create_app(settings, engines), settings)
    return 0


def create_worker() -> FastAPI:
    """The application of one of several server processes: uvicorn's workers import it by name.

    It has the parent's environment, and its command line too: multiprocessing hands that on.
    """
    settings = load_settings(sys.argv[1:], os.environ)
    _log_to_stderr(settings)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    return create_app(settings)


def _share_state_key(settings: Settings) -> None:
    """One key for all workers where none was given: they have this process's environment."""
    if settings.state_key is None:
        os.environ[f"{PREFIX}STATE_KEY"] = settings.signing_key().get_secret_value()


def _end_with_parent() -> None:
    """A parent that is killed tells nobody, and its workers would hold the port for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _serve(app: FastAPI | str, settings: Settings) -> None:
    uvicorn.run(
        app,
        factory=isinstance(app, str),
        workers=settings.workers,
        host=settings.host,
        port=settings.port,
        log_level=settings.log_level,
        access_log=False,
        http=BoundedProtocol,
        # Nobody's word is taken for where a request comes from.
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE_S,
    )


def _log_to_stderr(settings: Settings) -> None:
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )


def _ended_in_order(number: int, _: FrameType | None) -> None:
    logging.getLogger(__name__).info("ended by %s", signal.Signals(number).name)


if __name__ == "__main__":
    sys.exit(main())
