"""Where settings come from: variables `UNROLL_<NAME>` and flags `--<name>`; a flag wins.

`UNROLL_<NAME>_FILE` names a file that holds the value, as container engines hand out secrets.
Blanks around a value and the case of a choice do not matter, and an empty variable counts as unset.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from service import setting_words
from service.environment import PREFIX, is_service_link, program
from service.settings import SUBJECTS, Settings, SettingsError

FILE_SUFFIX = "_FILE"
_FIELDS = Settings.model_fields
VARIABLES = {PREFIX + name.upper(): name for name in _FIELDS}
# A name that is a setting itself, such as UNROLL_API_KEYS_FILE, is not one of these.
_FILES = {f"{key}{FILE_SUFFIX}": key for key in VARIABLES if key + FILE_SUFFIX not in VARIABLES}
KNOWN = (*VARIABLES, *_FILES)


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
            f"{PREFIX}{name.upper()}: it must be {setting_words.allowed(name)}" for name in names
        ]
        raise SettingsError("\n".join(lines)) from error


def _from_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Values by variable, from the variables themselves and from files."""
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
    """A value without blanks around it, with choices in lower case and ~ expanded."""
    stripped = value.strip()
    if setting_words.choices(name):
        return stripped.lower()
    return str(Path(stripped).expanduser()) if setting_words.is_path(name) else stripped


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program("serve"),
        description="Serve the bundles of a folder over HTTP. Each setting is a flag or a variable "
        f"in the environment: --log-level debug, {PREFIX}LOG_LEVEL=debug; {PREFIX}…{FILE_SUFFIX} "
        "names a file that holds the value. A flag wins.",
        epilog="Commands: generate, score, translate, infill, classify, tag, models, keys; each "
        "has a --help of its own.",
        usage="%(prog)s [--SETTING VALUE]...",
    )
    group = parser.add_argument_group()
    for name, field in _FIELDS.items():
        if name in SUBJECTS:
            group = parser.add_argument_group(SUBJECTS[name])
        help_text = (
            f"{field.description} (default: {setting_words.default(name)}; {PREFIX}{name.upper()})"
        )
        flag = f"--{name.replace('_', '-')}"
        metavar = setting_words.metavar(name)
        group.add_argument(flag, dest=name, metavar=metavar, help=help_text.replace("%", "%%"))
    return parser
