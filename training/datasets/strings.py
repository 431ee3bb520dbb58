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
from pathlib import Path

import polib  # type: ignore[import-untyped]

from training.datasets import dates, terms
from training.datasets.catalogs import (
    gettext_catalogs,
    is_draft,
    json_messages,
    notice,
    notices_text,
    package_of,
    tidy,
    unwanted,
)
from training.datasets.pairs import Pair, dropped_text, write_pairs
from training.datasets.registry import cache_beside, open_wheel

MAX_SOURCE_CHARS, MAX_TARGET_CHARS = 80, 120
DATE_PAIRS = 2_000

PACKAGES = (
    package_of(
        "django",
        "5.2.19",
        "5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00",
        "BSD-3-Clause",
    ),
    package_of(
        "wagtail",
        "8.0.1",
        "1e6ad5c7891a54efce1400e168298b5a2cc343b642cee89c31bf5ec30c98b26c",
        "BSD-3-Clause",
    ),
    package_of(
        "jupyterlab-language-pack-de-DE",
        "4.5.post3",
        "b716b56f7e0c884f42152d5e36c253ea0f32ca41f99097d842d3934f4a4bc7fb",
        "BSD-3-Clause",
        "LICENSE.txt",
    ),
    package_of(
        "spyder",
        "6.1.8",
        "4da836742a7138c93392a8a0bd1a5ff40002cf92d217ef0e7bed11b522322f90",
        "MIT",
        "LICENSE.txt",
    ),
    package_of(
        "thonny",
        "5.0.1",
        "94eb9fc3d9f45acffcda51c17e75f56bb4b14427fee0467e14fb4f6210c33041",
        "MIT",
        None,
    ),
    package_of(
        "sphinx",
        "9.0.4",
        "5bebc595a5e943ea248b99c13814c1c5e10b3ece718976824ffa7959ff95fffb",
        "BSD-2-Clause",
        "LICENSE.rst",
    ),
    package_of(
        "django-oscar",
        "4.2.1",
        "adbb95ea0130859c204cc6fb221052d6d437ecbaa90800e8418a809f72645e9c",
        "BSD-3-Clause",
    ),
    package_of(
        "djangorestframework",
        "3.18.3",
        "8544bb674846731b1e3c9b309236ee1dc412905a0aa725be2ec193ca950a7d12",
        "BSD-3-Clause",
        "LICENSE.md",
    ),
    package_of(
        "django-allauth",
        "65.21.1",
        "7bdf018c9f3f0a32c80677f84e7777272d9c833b180bd6734314c4831c802a9e",
        "MIT",
    ),
    package_of(
        "wtforms",
        "3.3.2",
        "2fac992f39102d6268b06e05cdbdf37a7e9b9a4e103916d2dff1d09a080b531d",
        "BSD-3-Clause",
        "LICENSE.rst",
    ),
    package_of(
        "django-cms",
        "5.1.3",
        "acf31919aab389d2bea253efa97a901bf55e96046a252f23a7a742e495848a5e",
        "BSD-3-Clause",
    ),
    package_of(
        "homeassistant",
        "2026.11.0",
        "7ca5fbde9dea879ac7723949fc84347aac5182e6309c357b2e4973fd391b00f7",
        "Apache-2.0",
        "LICENSE.md",
    ),
    package_of(
        "home-assistant-frontend",
        "20261028.8",
        "6df9f0fd2c39d108ad7ce6cffae42f3ca421a226e3328f3dec1111515f44f06d",
        "Apache-2.0",
        "LICENSE.md",
    ),
    package_of(
        "apache-superset",
        "6.1.0",
        "4b5886b2d6389a32df790aeae2532ad72529bce1af93b6edf2d1b2a8bf658748",
        "Apache-2.0",
        "LICENSE.txt",
    ),
    package_of(
        "apache-airflow-core",
        "3.3.2",
        "99258922bccec15be4700ff89f3c942b8acd93407e263c287ce863e671bb3c50",
        "Apache-2.0",
    ),
    package_of(
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
_LETTERS = re.compile(r"[^\W\d_]{2}")


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
            english, german = (
                json_messages(json.loads(wheel.read(names[x]))) for x in ("en", "de")
            )
            yield [(english[key], german[key]) for key in english if key in german]


def entry_pair(entry: polib.POEntry | polib.MOEntry) -> Pair | str:
    """What an entry says, cleaned; a word for why not, where it is of no use here.

    Of an entry with plurals, the singular.
    """
    if is_draft(entry):
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
    reason = unwanted(*pair)
    if reason is not None:
        return reason
    source, target = map(tidy, pair)
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
    for _, catalog in gettext_catalogs(wheel, _CATALOG):
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
            notices.append(notice(package, wheel))
        found, dropped = collect(cleaned)
        (held_out if package.wheel.name == HELD_OUT else strings).update(found)
        lines.append(
            f"{package}: {len(cleaned):,} entries, {len(found):,} pairs{dropped_text(dropped)}"
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
    (folder / "NOTICES.txt").write_bytes(notices_text(notices).encode())
    return lines
