"""`python -m service`: serve the bundles of a folder over HTTP."""

import logging
import os
import sys

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
    uvicorn.run(
        create_app(settings, engines),
        host=settings.host,
        port=settings.port,
        log_level=settings.log_level,
        access_log=False,
        timeout_graceful_shutdown=10,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
