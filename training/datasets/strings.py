"""Interface strings, English to German, with terms, numbers and dates.

Source: the message catalogs in the wheels of `PACKAGES`, all BSD, MIT or Apache; `NOTICES.txt`
holds their licences and notices. A gettext catalog holds both languages; JSON catalogs come one a
language, with the same keys. Strings come in families ("Delete page", "Delete pages"), so a split
by source alone gives figures that are too good. Therefore the package `HELD_OUT` is kept apart, and
its strings are removed from the others.
"""

import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import polib  # type: ignore[import-untyped]

from training.datasets import dates, terms
from training.datasets.pairs import Pair, dropped_text, write_pairs
from training.datasets.registry import Wheel, cache_beside, open_wheel

MAX_SOURCE_CHARS, MAX_TARGET_CHARS = 80, 120
DATE_PAIRS = 2_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """A wheel with German catalogs, and what its metadata says of its licence."""

    wheel: Wheel
    licence: str  # SPDX
    licence_file: str | None = "LICENSE"  # in its dist-info; None where it carries none


def _package(
    name: str, version: str, sha256: str, licence: str, file: str | None = "LICENSE"
) -> Package:
    wheel = Wheel(name=name, version=version, sha256=sha256)
    return Package(wheel=wheel, licence=licence, licence_file=file)


PACKAGES = (
    _package(
        "django",
        "5.2.19",
        "5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00",
        "BSD-3-Clause",
    ),
    _package(
        "wagtail",
        "8.0.1",
        "1e6ad5c7891a54efce1400e168298b5a2cc343b642cee89c31bf5ec30c98b26c",
        "BSD-3-Clause",
    ),
    _package(
        "jupyterlab-language-pack-de-DE",
        "4.5.post3",
        "b716b56f7e0c884f42152d5e36c253ea0f32ca41f99097d842d3934f4a4bc7fb",
        "BSD-3-Clause",
        "LICENSE.txt",
    ),
    _package(
        "spyder",
        "6.1.8",
        "4da836742a7138c93392a8a0bd1a5ff40002cf92d217ef0e7bed11b522322f90",
        "MIT",
        "LICENSE.txt",
    ),
    _package(
        "thonny",
        "5.0.1",
        "94eb9fc3d9f45acffcda51c17e75f56bb4b14427fee0467e14fb4f6210c33041",
        "MIT",
        None,
    ),
    _package(
        "sphinx",
        "9.0.4",
        "5bebc595a5e943ea248b99c13814c1c5e10b3ece718976824ffa7959ff95fffb",
        "BSD-2-Clause",
        "LICENSE.rst",
    ),
    _package(
        "django-oscar",
        "4.2.1",
        "adbb95ea0130859c204cc6fb221052d6d437ecbaa90800e8418a809f72645e9c",
        "BSD-3-Clause",
    ),
    _package(
        "djangorestframework",
        "3.18.3",
        "8544bb674846731b1e3c9b309236ee1dc412905a0aa725be2ec193ca950a7d12",
        "BSD-3-Clause",
        "LICENSE.md",
    ),
    _package(
        "django-allauth",
        "65.21.1",
        "7bdf018c9f3f0a32c80677f84e7777272d9c833b180bd6734314c4831c802a9e",
        "MIT",
    ),
    _package(
        "wtforms",
        "3.3.2",
        "2fac992f39102d6268b06e05cdbdf37a7e9b9a4e103916d2dff1d09a080b531d",
        "BSD-3-Clause",
        "LICENSE.rst",
    ),
    _package(
        "django-cms",
        "5.1.3",
        "acf31919aab389d2bea253efa97a901bf55e96046a252f23a7a742e495848a5e",
        "BSD-3-Clause",
    ),
    _package(
        "homeassistant",
        "2026.11.0",
        "7ca5fbde9dea879ac7723949fc84347aac5182e6309c357b2e4973fd391b00f7",
        "Apache-2.0",
        "LICENSE.md",
    ),
    _package(
        "home-assistant-frontend",
        "20261028.8",
        "6df9f0fd2c39d108ad7ce6cffae42f3ca421a226e3328f3dec1111515f44f06d",
        "Apache-2.0",
        "LICENSE.md",
    ),
    _package(
        "apache-superset",
        "6.1.0",
        "4b5886b2d6389a32df790aeae2532ad72529bce1af93b6edf2d1b2a8bf658748",
        "Apache-2.0",
        "LICENSE.txt",
    ),
    _package(
        "apache-airflow-core",
        "3.3.2",
        "99258922bccec15be4700ff89f3c942b8acd93407e263c287ce863e671bb3c50",
        "Apache-2.0",
    ),
    _package(
        "trac",
        "1.6",
        "5ff2f3394ebee7cc5b8ee465871cfdecb78ee492a74215b47b6d9ddbcc93b5f7",
        "BSD-3-Clause",
        "COPYING",
    ),
)
HELD_OUT = "django-cms"

_CATALOG = re.compile(r"/(?:locale|translations)/(?:de|de_DE)/LC_MESSAGES/[^/]+\.(?:po|mo)$")
# `translations/de.json` and `translations/config/de-<checksum>.json`; `locales/de/dags.json`.
_JSON_CATALOG = re.compile(
    r"(?P<folder>.*/translations/(?:[\w-]+/)?)(?P<language>de|en)(?:-[0-9a-f]{32})?\.json"
    r"|(?P<locales>.*/locales/)(?P<locale>de|en)/(?P<name>[^/]+)\.json"
)
_UNWANTED = (  # (reason, what in the source or the target is unwanted), in this order
    ("line break", re.compile(r"[\n\r\t]")),
    ("placeholder", re.compile(r"%\(|%%|%[a-zA-Z0-9]|\[%|\$\w|\$\{|[{}]|\(ENTER\)")),
    ("markup", re.compile(r"[<>`|*]|:\w+:|&#?\w+;|\\|\]\(")),
    ("address", re.compile(r"\w://|\bwww\.|\w@\w", re.IGNORECASE)),
    ("identifier", re.compile(r"\w_\w|\w\(\)|[a-z]\.[a-z]|^--?\w|/\w+/|[\^~]")),
)
# '&File' and 'E&xit', but neither 'R&D' nor 'Terms & conditions'; '_File'.
_ACCELERATOR = re.compile(r"(?<![A-Z])&(?=\w)|&(?=[a-zäöüß])|(?:(?<=\s)|^)_(?=\w)")
_LETTERS = re.compile(r"[^\W\d_]{2}")


def catalogs(wheel: zipfile.ZipFile) -> Iterator[polib.POFile | polib.MOFile]:
    """The German catalogs of a wheel: the .po where there is one, else the .mo."""
    names = sorted(name for name in wheel.namelist() if _CATALOG.search(name))
    for name in names:
        if name.endswith(".po"):
            yield polib.pofile(wheel.read(name).decode())
        elif name.removesuffix(".mo") + ".po" not in names:
            with TemporaryDirectory() as folder:  # polib reads .mo from a path only
                path = Path(folder, "catalog.mo")
                path.write_bytes(wheel.read(name))
                yield polib.mofile(str(path))


def json_catalogs(wheel: zipfile.ZipFile) -> Iterator[list[Pair]]:
    """The German catalogs of a wheel that are in JSON, as English and German by common keys."""
    found: dict[tuple[str, ...], dict[str, str]] = {}  # by what the languages share, by language
    for name in wheel.namelist():
        match = _JSON_CATALOG.fullmatch(name)
        if match is not None:
            shared = tuple(match[x] or "" for x in ("folder", "locales", "name"))
            found.setdefault(shared, {})[match["language"] or match["locale"]] = name
    for shared in sorted(found):
        names = found[shared]
        if len(names) == len(("en", "de")):
            english, german = (_messages(json.loads(wheel.read(names[x]))) for x in ("en", "de"))
            yield [(english[key], german[key]) for key in english if key in german]


def _messages(document: object, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], str]:
    """The texts in a document by the keys that lead to them."""
    if isinstance(document, str):
        return {path: document}
    if not isinstance(document, dict):
        return {}
    parts = (_messages(value, (*path, key)) for key, value in document.items())
    return {key: text for part in parts for key, text in part.items()}


def entry_pair(entry: polib.POEntry | polib.MOEntry) -> Pair | str:
    """What an entry says, cleaned; a word for why not, where it is of no use here.

    Of an entry with plurals, the singular.
    """
    # A compiled catalog holds neither fuzzy nor obsolete entries, and its entries no such field.
    if isinstance(entry, polib.POEntry) and (entry.fuzzy or entry.obsolete):
        return "fuzzy or obsolete"
    target = entry.msgstr_plural.get(0, "") if entry.msgid_plural else entry.msgstr
    return clean_pair(entry.msgid, target)


def clean_pair(source: str, target: str) -> Pair | str:
    """A message cleaned; a word for why not, where it is of no use here.

    Accelerator marks are taken away and runs of blanks made one.
    """
    if not target.strip():
        return "untranslated"
    pair = source.strip(), target.strip()
    for reason, pattern in _UNWANTED:
        if any(pattern.search(text) for text in pair):
            return reason
    source, target = (" ".join(_ACCELERATOR.sub("", text).split()) for text in pair)
    if len(source) > MAX_SOURCE_CHARS or len(target) > MAX_TARGET_CHARS:
        return "too long"
    if not (_LETTERS.search(source) and _LETTERS.search(target)):
        return "without a word"
    # One word may well be the same in both languages, several hardly.
    if source == target and " " in source:
        return "equal to the source"
    return source, target


def collect(cleaned: Iterable[Pair | str]) -> tuple[dict[Pair, None], Counter[str]]:
    """The pairs in order, each once, and how many messages were dropped for what reason."""
    pairs: dict[Pair, None] = {}
    dropped: Counter[str] = Counter()
    for found in cleaned:
        if isinstance(found, str):
            dropped[found] += 1
        else:
            pairs[found] = None
    return pairs, dropped


def messages(wheel: zipfile.ZipFile) -> Iterator[Pair | str]:
    """Every message of a wheel's catalogs, cleaned."""
    for catalog in catalogs(wheel):
        yield from map(entry_pair, catalog)
    for pairs in json_catalogs(wheel):
        yield from (clean_pair(*pair) for pair in pairs)


def build(folder: Path) -> list[str]:
    """Write the strings, the package apart, the terms, numbers and dates, and `NOTICES.txt`."""
    lines: list[str] = []
    notices: list[str] = []
    strings: dict[Pair, None] = {}  # in order, each once
    held_out: dict[Pair, None] = {}
    for package in PACKAGES:
        with open_wheel(package.wheel, cache_beside(folder)) as wheel:
            cleaned = list(messages(wheel))
            notices.append(_notice(package, wheel))
        found, dropped = collect(cleaned)
        (held_out if package.wheel.name == HELD_OUT else strings).update(found)
        name = f"{package.wheel.name} {package.wheel.version} ({package.licence})"
        lines.append(
            f"{name}: {len(cleaned):,} entries, {len(found):,} pairs{dropped_text(dropped)}"
        )
    apart = {source.casefold() for source, _ in held_out}
    others = [pair for pair in strings if pair[0].casefold() not in apart]
    line = write_pairs(folder / "strings.tsv", sorted(others))
    lines.append(f"{line} ({len(strings) - len(others):,} more have a source of {HELD_OUT})")
    lines.append(write_pairs(folder / "package.tsv", sorted(held_out)))
    lines.append(write_pairs(folder / "terms.tsv", terms.names()))
    lines.append(write_pairs(folder / "numbers.tsv", terms.numbers()))
    lines.append(write_pairs(folder / "dates.tsv", dates.en_de()["train"][:DATE_PAIRS]))
    notices.append(dates.cldr_notice())
    text = f"\n{'=' * 80}\n\n".join(notices)
    (folder / "NOTICES.txt").write_bytes(text.encode())
    return lines


def _notice(package: Package, wheel: zipfile.ZipFile) -> str:
    """The licence, and the `NOTICE` that Apache-2.0 (4d) wants kept, where the wheel has one."""
    head = f"{package.wheel.name} {package.wheel.version}: {package.licence}\n"
    if package.licence_file is None:
        metadata = (_info(wheel, "METADATA") or "").splitlines()
        said = [x for x in metadata if x.startswith(("Author", "License"))]
        return head + "\nThe package carries no licence text. It says:\n" + "\n".join([*said, ""])
    texts = (_info(wheel, name) for name in (package.licence_file, "NOTICE"))
    return head + "".join(f"\n{text.strip()}\n" for text in texts if text is not None)


def _info(wheel: zipfile.ZipFile, file: str) -> str | None:
    """A file of the wheel's dist-info; older wheels have no folder of licences there."""
    endings = tuple(f".dist-info/{folder}{file}" for folder in ("licenses/", ""))
    found = (name for name in wheel.namelist() if name.endswith(endings))
    return next((wheel.read(name).decode() for name in found), None)
