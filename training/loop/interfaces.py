"""The network interface through which another machine is reached (Linux and IPv4 only)."""

import socket
import struct

_SIOCGIFADDR = 0x8915  # netdevice(7): the address of an interface
_NAME_BYTES = 16
_ADDRESS = slice(20, 24)
_ANY_PORT = 9  # nothing is sent


def interface_towards(host: str) -> str | None:
    """The name of the interface through which this machine reaches `host`; None if unknown."""
    try:
        import fcntl  # noqa: PLC0415 (not on Windows)

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, _ANY_PORT))
            own = socket.inet_aton(probe.getsockname()[0])
            for _, name in socket.if_nameindex():
                asked = struct.pack("256s", name.encode()[: _NAME_BYTES - 1])
                try:
                    answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, asked)
                except OSError:
                    continue  # without an address
                if answer[_ADDRESS] == own:
                    return name
    except (OSError, ImportError):
        return None
    return None
