"""`python -m service.health`: the health check of containers; exits with 0 if /readyz answers 200.

It connects to the host and port that the server reads from the same environment, without a proxy.
"""

import os
import sys
from http.client import HTTPConnection, HTTPException
from ipaddress import ip_address

from service.setting_sources import load_settings
from service.settings import Settings, SettingsError

_TIMEOUT_S = 2.0


def main() -> int:
    """Return 0 if the server is ready, else 1 with the reason on standard error."""
    try:
        settings = load_settings(sys.argv[1:], os.environ)
        status = _status(settings)
    except (SettingsError, OSError, HTTPException) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    if status != 200:
        sys.stderr.write(f"error: /readyz answered {status}\n")
        return 1
    return 0


def _status(settings: Settings) -> int:
    connection = HTTPConnection(_reachable(settings.host), settings.port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status
    finally:
        connection.close()


def _reachable(host: str) -> str:
    """An address at which the server answers: the loopback address for one like 0.0.0.0."""
    try:
        address = ip_address(host)
    except ValueError:
        return host
    return "127.0.0.1" if address.is_unspecified else host


if __name__ == "__main__":
    sys.exit(main())
