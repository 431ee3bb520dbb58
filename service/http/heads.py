"""The headers of a request by name: parsed once for everyone who looks one up."""

from starlette.types import Scope

_KEY = "unroll.headers"


def header(scope: Scope, name: bytes, default: str = "") -> str:
    """The value of a header, the first if it is repeated; `name` is in lower case."""
    value = _by_name(scope).get(name)
    return default if value is None else value.decode("latin-1")


def headers(scope: Scope, name: bytes) -> list[str]:
    """All values of a header."""
    if name not in _by_name(scope):
        return []
    return [value.decode("latin-1") for given, value in scope["headers"] if given == name]


def _by_name(scope: Scope) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] | None = scope.get(_KEY)
    if found is None:
        # The first of several is found, as everywhere in Starlette.
        found = scope[_KEY] = dict(reversed(scope["headers"]))
    return found
