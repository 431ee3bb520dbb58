"""`python -m service`: serve the bundles of a folder over HTTP."""

import logging
import os
import signal
import sys
from types import FrameType

import uvicorn

from service.app import create_app, load_engines
from service.bundle import BundleError
from service.settings import SettingsError, load_settings


def main() -> int:
    """Serve until a signal; the exit status: 0 after a clean end, 2 for a bad setting, 1 else."""
    try:
        settings = load_settings(sys.argv[1:], os.environ)
    except SettingsError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        engines = load_engines(settings)
    except BundleError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    # uvicorn ends in order on the first signal and then raises it again for whoever handled it
    # before: nobody, so that a clean end is an exit status of 0.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _ended_in_order)
    uvicorn.run(
        create_app(settings, engines),
        host=settings.host,
        port=settings.port,
        log_level=settings.log_level,
        access_log=False,
        timeout_graceful_shutdown=10,
    )
    return 0


def _ended_in_order(number: int, _: FrameType | None) -> None:
    logging.getLogger(__name__).info("ended by %s", signal.Signals(number).name)


if __name__ == "__main__":
    sys.exit(main())
