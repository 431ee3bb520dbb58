"""Variables `UNROLL_…` that are not settings: of a deployment, from Kubernetes, or mistyped.

Kubernetes and Docker put the addresses of services into the environment of every container. A
service named `unroll` makes them look like settings: `UNROLL_PORT=tcp://10.0.0.1:8000`.
"""

import difflib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

PREFIX = "UNROLL_"
# What compose.yaml and README set beside the settings; they are for Docker, not for the server.
DEPLOYMENT = frozenset(
    PREFIX + name
    for name in (
        *("UID", "GID", "WORK", "TORCH_INDEX", "PUBLISHED_PORT", "PROMETHEUS_PORT", "NGINX_PORT"),
        "SPREAD",
    )
)
_LINK_NAME = re.compile(
    r"UNROLL(_[A-Z0-9_]+)?_"
    r"(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_LIST = "`python -m service --help` lists them"
_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://\S*")


def is_service_link(name: str, value: str) -> bool:
    """Whether Kubernetes or Docker set the variable to say where a service listens."""
    if name.endswith("_PORT") and _LINK_VALUE.fullmatch(value):
        return True
    return _LINK_NAME.fullmatch(name) is not None


def service_links(environment: Mapping[str, str]) -> list[str]:
    """The names of all such variables that look like ours."""
    ours = (item for item in environment.items() if item[0].startswith(PREFIX))
    return [name for name, value in ours if is_service_link(name, value)]


def unknown_variables(environment: Mapping[str, str], known: Iterable[str]) -> Iterator[str]:
    """A sentence for each unknown variable, with the closest known name."""
    names = [*known]
    expected = {*names, *DEPLOYMENT, *service_links(environment)}
    for name in environment:
        if not name.startswith(PREFIX) or name in expected:
            continue
        # Without the common prefix, which would make all names similar.
        near = difflib.get_close_matches(
            name.removeprefix(PREFIX), [x.removeprefix(PREFIX) for x in names], n=1
        )
        hint = f"did you mean {PREFIX}{near[0]}?" if near else _LIST
        yield f"{name} is not a setting and is ignored; {hint}"


def program(command: str = "") -> str:
    """How the command line was called: as a module, or as the script of `unroll.py`."""
    if Path(sys.argv[0]).stem == "unroll":
        return f"unroll {command}".strip()
    return "python -m service"
