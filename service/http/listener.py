"""The sockets that the server listens on, IPv4 and IPv6, bound before any model is loaded."""

import errno
import ipaddress
import socket
from collections.abc import Sequence


class ListenError(Exception):
    """The server cannot listen on an address; the message is one line that says what to do."""


def bound_sockets(host: str, port: int) -> list[socket.socket]:
    """A socket for each address of the host, bound but not yet listening. Raises ListenError.

    `::` is one socket for both families. Port 0 picks a free port, the same for all sockets.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise ListenError(
            f"host: this machine cannot resolve that name or address; {_ADDRESSES}"
        ) from error
    sockets: list[socket.socket] = []
    absent: OSError | None = None
    for family, _, _, _, address in dict.fromkeys(found):
        # With port 0 and several addresses, the others use the port that the first one got.
        free = sockets[0].getsockname()[1] if sockets and port == 0 else port
        try:
            sockets.append(_bound(family, (address[0], free, *address[2:])))
        except OSError as error:
            # `localhost` may resolve to an IPv6 address on a machine without IPv6.
            if error.errno not in _ABSENT:
                for each in sockets:
                    each.close()
                raise _listen_error(error, host, port) from error
            absent = error
    if not sockets and absent is not None:
        raise _listen_error(absent, host, port) from absent
    return sockets


def listen(sockets: Sequence[socket.socket]) -> None:
    """Start accepting connections. Raises ListenError.

    Two servers started at the same time may both bind a port, but only one can listen on it.
    """
    for each in sockets:
        try:
            each.listen()
        except OSError as error:
            host, port = each.getsockname()[:2]
            raise _listen_error(error, str(host), port) from error


def all_loopback(sockets: Sequence[socket.socket]) -> bool:
    """Whether only this machine can reach the sockets, whatever host name was configured."""
    hosts = [str(each.getsockname()[0]).partition("%")[0] for each in sockets]
    return all(ipaddress.ip_address(host).is_loopback for host in hosts)


def url_of(bound: socket.socket) -> str:
    """The URL of the socket for a person on this machine."""
    host, port = bound.getsockname()[:2]
    address = ipaddress.ip_address(str(host).partition("%")[0])
    if address.is_unspecified:
        both = bound.family == socket.AF_INET6
        families = "IPv4 and IPv6" if both else "IPv4"
        return f"http://127.0.0.1:{port} (and every address of this machine, {families})"
    return f"http://[{host}]:{port}" if address.version == 6 else f"http://{host}:{port}"


_ABSENT = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
_ADDRESSES = (
    "use 127.0.0.1 for this machine only, 0.0.0.0 for all its IPv4 addresses, :: for IPv4 and IPv6"
)


def _bound(family: int, address: tuple[str | int, ...]) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            only = not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_unspecified
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(only))
        made.bind(address)
    except OSError:
        made.close()
        raise
    made.set_inheritable(True)
    return made


def _listen_error(error: OSError, host: str, port: int) -> ListenError:
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if error.errno == errno.EADDRINUSE:
        what = "the port is in use; stop the program that uses it, or choose another with --port or"
        return ListenError(f"{shown}: {what} UNROLL_PORT (0 picks a free one)")
    if error.errno == errno.EACCES:
        return ListenError(
            f"{shown}: this user may not listen on a port below 1024; choose one above it"
        )
    if error.errno in _ABSENT:
        return ListenError(f"{shown}: this machine has no such address; {_ADDRESSES}")
    return ListenError(f"{shown}: {error.strerror}")
