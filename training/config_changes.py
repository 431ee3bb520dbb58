"""Changes to a configuration on the command line, `--set KEY=VALUE`, and the resulting file."""

import copy
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

from training.errors import ConfigError

# An option, by its section and name such as `model.hidden_size`, and its new value.
Changes: TypeAlias = Mapping[str, Any]
NO_CHANGES: Changes = MappingProxyType({})

_KEY = re.compile(r"[\w-]+(\.[\w-]+)*", re.ASCII)
# A value that begins with one of these has an end of its own, which may come after a comma.
_OPENERS = frozenset("\"'[{")
_NOT_BARE = _OPENERS | frozenset("]}")
# How other languages write TOML's words.
_FOREIGN = {"True": "true", "False": "false"}


def read_changes(texts: Sequence[str]) -> dict[str, list[Any]]:
    """The options that `KEY=VALUE` or `KEY=VALUE,VALUE` name, with their values.

    A value is written as in TOML; a text that cannot be mistaken needs no quotes.
    Raises ConfigError.
    """
    found: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        key = key.strip()
        if not equals or not _KEY.fullmatch(key):
            raise ConfigError(f"--set {text}: write KEY=VALUE, such as model.hidden_size=512")
        if key in found:
            raise ConfigError(f"--set {key}: it is given twice")
        found[key] = [*_values(key, values)]
    return found


def read_single_changes(texts: Sequence[str]) -> Changes:
    """As `read_changes`, with one value for each option. Raises ConfigError."""
    changes = read_changes(texts)
    for key, values in changes.items():
        if len(values) > 1:
            raise ConfigError(
                f"--set {key}: it has {len(values)} values, which `sweep` trains one by one; give "
                "one value here. A list needs brackets, and a text with a comma needs quotes"
            )
    return {key: value for key, (value,) in changes.items()}


def as_word(key: str, value: Any) -> str:
    """`KEY=VALUE` as `read_changes` reads it."""
    return f"{key}={_toml(value)}"


def changed(document: Mapping[str, Any], changes: Changes) -> dict[str, Any]:
    """A changed copy of a configuration. Raises ConfigError if a section is an option."""
    result = copy.deepcopy(dict(document))
    for key, value in changes.items():
        *sections, option = key.split(".")
        table = result
        for section in sections:
            table = table.setdefault(section, {})
            if not isinstance(table, dict):
                raise ConfigError(f"--set {key}: {section} is an option, not a section")
        table[option] = value
    return result


def render(note: str, document: Mapping[str, Any]) -> str:
    """A configuration as TOML, below a comment."""
    lines = [f"# {''.join(c if c.isprintable() else ' ' for c in note)}", *_table(document, ())]
    return "\n".join(lines) + "\n"


def _table(table: Mapping[str, Any], name: tuple[str, ...]) -> Iterator[str]:
    if name:
        yield from ("", f"[{'.'.join(map(_key, name))}]")
    for key, value in table.items():
        if not isinstance(value, Mapping):
            yield f"{_key(key)} = {_toml(value)}"
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _table(value, (*name, key))


def _key(text: str) -> str:
    return text if re.fullmatch(r"[\w-]+", text, re.ASCII) else _toml(text)


def _toml(value: Any) -> str:
    """Strings, numbers and lists of JSON are TOML, except for the character 127."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _values(key: str, text: str) -> Iterator[Any]:
    """The values between the commas; commas inside quotes and brackets do not count."""
    piece = ""
    for part in text.split(","):
        piece = f"{piece},{part}" if piece else part.strip()
        if not piece:
            raise ConfigError(f'--set {key}: a value is missing; the empty text is ""')
        found = _toml_value(piece)
        if found is not None:
            _refuse_times(key, piece, found)
            yield found
        elif piece[0] in _OPENERS:
            continue
        else:
            yield _bare(key, piece)
        piece = ""
    if piece:
        raise ConfigError(f"--set {key}: {piece}: not a TOML value; is a quote or bracket missing?")


def _toml_value(text: str) -> Any | None:
    """The value of a text that is one TOML value, else None; TOML has no null."""
    try:
        document = tomllib.loads(f"values = [{text}]")
    except tomllib.TOMLDecodeError:
        return None
    found = document["values"]
    return found[0] if len(document) == len(found) == 1 else None


def _refuse_times(key: str, text: str, value: Any) -> None:
    try:
        json.dumps(value)
    except TypeError as error:
        raise ConfigError(
            f'--set {key}: {text}: a date or a time, which no option takes; write a text as "…"'
        ) from error


def _bare(key: str, text: str) -> str:
    if text in _FOREIGN:
        raise ConfigError(f'--set {key}: {text}: write {_FOREIGN[text]}, or "{text}" for a text')
    if not text.isprintable() or not _NOT_BARE.isdisjoint(text):
        raise ConfigError(
            f"--set {key}: {text}: a text with quotes, brackets or control characters must be "
            "quoted as in TOML"
        )
    return text
