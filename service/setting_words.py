"""What a setting takes, in words: for its help, its errors and docs/settings.md."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from service.settings import Settings

_FIELDS = Settings.model_fields
_UNITS = {"s": "seconds", "bytes": "bytes", "chars": "characters"}
_METAVARS = {"dir": "FOLDER", "file": "FILE", "host": "ADDRESS", "endpoint": "URL"}
_FORMS = {
    "allowed_hosts": "host names separated by commas, or *",
    "api_keys_file": "the path of a file",
    "cors_origins": "origins, scheme://host or scheme://host:port, such as https://page.example, "
    "separated by commas",
    "frame_ancestors": "self or origins such as https://portal.example, separated by commas",
    "models_dir": "the path of a folder",
    "otlp_endpoint": "a URL that begins with http:// or https://",
    "root_path": "a path such as /unroll, without a slash at its end",
}


def choices(name: str) -> tuple[str, ...]:
    """The words that a setting chooses from; empty for other settings."""
    kind = _FIELDS[name].annotation
    return get_args(kind) if get_origin(kind) is Literal else ()


def is_path(name: str) -> bool:
    """Whether a setting is the path of a file or folder."""
    return _type(_FIELDS[name]) is Path


def allowed(name: str) -> str:
    """The values that a setting takes, as in "it must be …"."""
    if words := choices(name):
        return "one of " + ", ".join(words)
    field = _FIELDS[name]
    kind = _type(field)
    if kind is bool:
        return "true or false (also 1 or 0, yes or no, on or off)"
    bounds = list(_bounds(field))
    if kind in {int, float}:
        number = "a whole number" if kind is int else "a number"
        unit = f" of {_unit(name)}" if _unit(name) else ""
        limits = " and ".join(_bound(each, whole=kind is int) for each in bounds)
        off = ", or leave it unset" if field.default is None else ""
        return f"{number}{unit}, {limits}{off}" if limits else f"{number}{unit}{off}"
    least = next((x.min_length for x in bounds if isinstance(x, MinLen)), None)
    if least is not None:
        return f"a text of at least {least} character{'s' if least > 1 else ''}"
    return _FORMS.get(name, "a text")


def default(name: str) -> str:
    """A setting's default, with its unit."""
    value = _FIELDS[name].default
    if value is None or value == "":
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, SecretStr):
        raise TypeError(name)
    for size, unit in ((2**20, "MiB"), (2**10, "KiB")):
        if name.endswith("_bytes") and value % size == 0:
            return f"{value}, {value // size} {unit}"
    unit = " s" if _unit(name) == "seconds" else ""
    return f"{value:g}{unit}" if isinstance(value, float) else f"{value}{unit}"


def metavar(name: str) -> str:
    """The placeholder for a setting's value in the help."""
    if words := choices(name):
        return f"{{{','.join(words)}}}"
    kind = _type(_FIELDS[name])
    if kind is bool:
        return "{true,false}"
    if kind in {int, float}:
        return (_unit(name) or "number").upper()
    return _METAVARS.get(name.rsplit("_", 1)[-1], "TEXT")


def _type(field: FieldInfo) -> Any:
    """A setting's type, without its bounds and without None."""
    kinds = [x for x in get_args(field.annotation) if x is not type(None)]
    kind = kinds[0] if kinds and get_origin(field.annotation) is not Literal else field.annotation
    return getattr(kind, "__origin__", kind) if hasattr(kind, "__metadata__") else kind


def _unit(name: str) -> str:
    return _UNITS.get(name.rsplit("_", 1)[-1], "")


def _bounds(field: FieldInfo) -> Iterator[Any]:
    """Bounds of a number or of a text's length, also those inside of `X | None`."""
    for kind in (field, *get_args(field.annotation)):
        for each in getattr(kind, "metadata", getattr(kind, "__metadata__", ())):
            yield from getattr(each, "metadata", (each,))


def _bound(bound: Any, *, whole: bool) -> str:
    if isinstance(bound, Gt):
        return "at least 1" if whole and bound.gt == 0 else f"above {bound.gt:g}"
    if isinstance(bound, Ge):
        return f"at least {bound.ge:g}"
    if isinstance(bound, Le):
        return f"at most {bound.le}"
    raise TypeError(type(bound))
