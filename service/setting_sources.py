"""Where settings come from: variables `UNROLL_<NAME>` and flags `--<name>`; a flag wins.

`UNROLL_<NAME>_FILE` names a file that holds the value, as container engines hand out secrets.
Values are lenient about form: blanks around them and the case of choices do not matter, and an
empty variable is as unset.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo

from service.environment import PREFIX, is_service_link, program
from service.settings import SUBJECTS, Settings, SettingsError

FILE_SUFFIX = "_FILE"
_FIELDS = Settings.model_fields
VARIABLES = {PREFIX + name.upper(): name for name in _FIELDS}
# A name that is a setting itself, such as UNROLL_API_KEYS_FILE, is none of these.
_FILES = {f"{key}{FILE_SUFFIX}": key for key in VARIABLES if key + FILE_SUFFIX not in VARIABLES}
KNOWN = (*VARIABLES, *_FILES)

_UNITS = {"s": "seconds", "bytes": "bytes", "chars": "characters"}
_METAVARS = {"dir": "FOLDER", "file": "FILE", "host": "ADDRESS", "endpoint": "URL"}


def load_settings(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Settings from flags and environment. Raises SettingsError; `--help` exits."""
    values = {VARIABLES[key]: value for key, value in _from_environment(environment).items()}
    flags = vars(_parser().parse_args(arguments))
    values |= {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings.model_validate({name: _plain(name, x) for name, x in values.items()})
    except ValidationError as error:
        names = dict.fromkeys(str(x["loc"][0]) for x in error.errors(include_url=False))
        lines = [
            f"{PREFIX}{name.upper()}: it must be {_allowed(name, _FIELDS[name])}" for name in names
        ]
        raise SettingsError("\n".join(lines)) from error


def _from_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Values by variable: those that are set, and those in files."""
    said = {
        key: value
        for key, value in environment.items()
        if value.strip() and not is_service_link(key, value)
    }
    given = {key: said[key] for key in VARIABLES if key in said}
    for key, named in _FILES.items():
        if key in said:
            if named in given:
                raise SettingsError(f"{key}: {named} is set, too; one of them has to go")
            given[named] = _read_secret(key, said[key].strip())
    return given


def _read_secret(key: str, path: str) -> str:
    try:
        return Path(path).read_text("utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError(f"{key}: {path}: {cause}") from error


def _plain(name: str, value: str) -> str:
    """A value without what does not matter in it."""
    stripped = value.strip()
    if _choices(_FIELDS[name]):
        return stripped.lower()
    return str(Path(stripped).expanduser()) if _type(_FIELDS[name]) is Path else stripped


# --- what a setting takes -------------------------------------------------------------------------


def _type(field: FieldInfo) -> Any:
    """A setting's type, without its bounds and without None."""
    kinds = [x for x in get_args(field.annotation) if x is not type(None)]
    kind = kinds[0] if kinds and get_origin(field.annotation) is not Literal else field.annotation
    return getattr(kind, "__origin__", kind) if hasattr(kind, "__metadata__") else kind


def _choices(field: FieldInfo) -> tuple[str, ...]:
    kind = field.annotation
    return get_args(kind) if get_origin(kind) is Literal else ()


def _unit(name: str) -> str:
    return _UNITS.get(name.rsplit("_", 1)[-1], "")


def _bounds(field: FieldInfo) -> Iterator[Any]:
    """Bounds of a number or of a text's length, also those inside of `X | None`."""
    for kind in (field, *get_args(field.annotation)):
        for each in getattr(kind, "metadata", getattr(kind, "__metadata__", ())):
            yield from getattr(each, "metadata", (each,))


def _allowed(name: str, field: FieldInfo) -> str:
    """The values that a setting takes, in words."""
    if choices := _choices(field):
        return "one of " + ", ".join(choices)
    kind = _type(field)
    if kind is bool:
        return "true or false (also 1 or 0, yes or no, on or off)"
    bounds = list(_bounds(field))
    if kind in {int, float}:
        limits = " and ".join(_bound(each, whole=kind is int) for each in bounds)
        words = "a whole number" if kind is int else "a number"
        unit = f" of {_unit(name)}" if _unit(name) else ""
        off = ", or leave it unset" if field.default is None else ""
        return f"{words}{unit}, {limits}{off}" if limits else f"{words}{unit}{off}"
    least = next((x.min_length for x in bounds if isinstance(x, MinLen)), None)
    if least is not None:
        return f"a text of at least {least} character{'s' if least > 1 else ''}"
    return _FORMS.get(name, "a text")


_FORMS = {
    "otlp_endpoint": "a URL that begins with http:// or https://",
    "root_path": "a path such as /unroll, without a slash at its end",
    "cors_origins": "origins, scheme://host or scheme://host:port, such as https://page.example, "
    "separated by commas",
    "frame_ancestors": "self or origins such as https://portal.example, separated by commas",
}


def _bound(bound: Any, *, whole: bool) -> str:
    if isinstance(bound, Gt):
        return "at least 1" if whole and bound.gt == 0 else f"above {bound.gt:g}"
    if isinstance(bound, Ge):
        return f"at least {bound.ge:g}"
    if isinstance(bound, Le):
        return f"at most {bound.le}"
    raise TypeError(type(bound))


# --- help -----------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program("serve"),
        description="Serve the bundles of a folder over HTTP. Each setting is a flag or a variable "
        f"in the environment: --log-level debug, {PREFIX}LOG_LEVEL=debug; {PREFIX}…{FILE_SUFFIX} "
        "names a file that holds the value. A flag wins.",
        epilog="Commands: generate, score, translate, models, keys; each has a --help of its own.",
        usage="%(prog)s [--SETTING VALUE]...",
    )
    group = parser.add_argument_group()
    for name, field in _FIELDS.items():
        if name in SUBJECTS:
            group = parser.add_argument_group(SUBJECTS[name])
        help_text = f"{field.description} ({_default(name, field)}; {PREFIX}{name.upper()})"
        flag = f"--{name.replace('_', '-')}"
        metavar = _metavar(name, field)
        group.add_argument(flag, dest=name, metavar=metavar, help=help_text.replace("%", "%%"))
    return parser


def _metavar(name: str, field: FieldInfo) -> str:
    if choices := _choices(field):
        return f"{{{','.join(choices)}}}"
    kind = _type(field)
    if kind is bool:
        return "{true,false}"
    if kind in {int, float}:
        return (_unit(name) or "number").upper()
    return _METAVARS.get(name.rsplit("_", 1)[-1], "TEXT")


def _default(name: str, field: FieldInfo) -> str:
    value = field.default
    if value is None or value == "":
        return "default: unset"
    if isinstance(value, bool):
        return f"default: {str(value).lower()}"
    if isinstance(value, SecretStr):
        raise TypeError(name)
    for size, unit in ((2**20, "MiB"), (2**10, "KiB")):
        if name.endswith("_bytes") and value % size == 0:
            return f"default: {value}, {value // size} {unit}"
    unit = " s" if _unit(name) == "seconds" else ""
    return f"default: {value:g}{unit}" if isinstance(value, float) else f"default: {value}{unit}"
