"""Parsers for values of settings: origins, lists, loopback addresses."""

import ipaddress
import re
import socket

LOOPBACK = ("127.0.0.1", "::1", "localhost")
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?/?")


def origin(text: str) -> str:
    """An origin as browsers send it: lower case, no path, no default port."""
    if text in {"*", "null"}:
        return text
    found = _ORIGIN.fullmatch(text.lower())
    if found is None:
        raise ValueError(
            "an origin is scheme://host or scheme://host:port, such as https://page.example"
        )
    scheme, host, port = found.groups()
    known = {"http": "80", "https": "443"}.get(scheme)
    return f"{scheme}://{host}" + ("" if port in {None, known} else f":{port}")


def parted(text: str) -> tuple[str, ...]:
    """The parts between commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def is_loopback(host: str) -> bool:
    """Whether a host, in any spelling, is this machine's own (`localhost`, 127.0.0.2, ::1)."""
    name = host.strip("[]").partition("%")[0].rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        try:
            # As the system reads addresses: 127.1, 0x7f.1, 2130706433.
            address = ipaddress.ip_address(socket.inet_aton(name))
        except OSError:
            return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
