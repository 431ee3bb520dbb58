"""Short texts and the language each is in, for 60 languages.

Source: interface strings from the message catalogs in the wheels of `PACKAGES` (BSD, MIT or
Apache), and CLDR's names of languages, territories, currencies and units (Unicode License v3), as
`babel` carries them; `NOTICES.txt` holds licences and notices.

What a text must be to count as one of its language:

- it has at least three letters, half of them or more in the language's script;
- it differs from the English message (or else it was not translated); and an English message must
  not stay the same in three or more other languages (a name or a term, such as "Bluetooth");
- no other language has it: texts that several languages share are dropped from each of them.

Texts count as the same if their letters are the same, whatever the case. Variants of a language are
merged (`pt_BR` and `pt_PT`, `zh_Hans` and `zh_Hant`). The packages of `HELD_OUT` are held out as a
whole, and their texts are removed from the others.

Short texts are the hard ones, and there are too few of them. So the training texts are also cut
into pieces of a few words (`pieces.tsv`), without those that are a text of any split or that two
languages share.
"""

import json
import re
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, TypeAlias

from babel import Locale

from training.datasets import dates, strings
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
from training.datasets.pairs import by_digest, write_pairs
from training.datasets.registry import cache_beside, open_wheel
from training.datasets.terms import cldr_names

PACKAGES = (
    # The JupyterLab packages have catalogs of one language only.
    *(x for x in strings.PACKAGES if not x.wheel.name.startswith("jupyterlab")),
    package_of(
        "holidays",
        "0.109",
        "7d39c910167116d41fa6aae18d5e72b4541700cdd37743d799c83db3419201b0",
        "MIT",
    ),
    package_of(
        "indico",
        "3.3.14",
        "d98e030e0f21d22b9d9423d7cb3f9fca472ac5c2c4f3d8c5d7026ed3ed6c9811",
        "MIT",
    ),
    package_of(
        "mezzanine",
        "6.1.1",
        "abb8a3d7ee91b724d8aa89fa971bad1cf8e368c21055da4913e20e1418a96d1b",
        "BSD-2-Clause",
    ),
    package_of(
        "django-filer",
        "3.6.0",
        "b441e081f0f5688d234815bd0421a1bafa10217eac31bdfe7c3ef3b092430bb3",
        "BSD-3-Clause",
    ),
    package_of(
        "flask-admin",
        "2.2.1",
        "a0533fd1968543fc621733316bb9c30774b501c119816f1e83d7dcedacb99895",
        "BSD-3-Clause",
    ),
    package_of(
        "django-helpdesk",
        "2.6.1",
        "f2167cd340577088be861fa5d25ca6f828226ac0d25db7e67b96a35a89ca4e44",
        "BSD-3-Clause",
    ),
    package_of(
        "invenio-app-rdm",
        "14.0.5",
        "355ba3d85f95babbad198b51784764e51e24f810d219026a1d184cd48e3206c6",
        "MIT",
    ),
    package_of(
        "django-two-factor-auth",
        "1.18.1",
        "ccc9cee10be880037914e572389be6dcae93947709a8a9ff01fb23f7dee254f2",
        "MIT",
    ),
)
HELD_OUT = frozenset({"wagtail", "django-cms", "django-allauth"})

_CYRILLIC = frozenset({"CYRILLIC"})
_ARABIC = frozenset({"ARABIC"})
_DEVANAGARI = frozenset({"DEVANAGARI"})
_LATIN = frozenset({"LATIN"})
# The scripts of each language that is not written in Latin letters, by the first words of the
# characters' Unicode names.
_SCRIPTS = {
    **dict.fromkeys(("be", "bg", "kk", "mk", "mn", "ru", "sr", "uk"), _CYRILLIC),
    **dict.fromkeys(("ar", "fa", "ur"), _ARABIC),
    **dict.fromkeys(("hi", "mr"), _DEVANAGARI),
    "bn": frozenset({"BENGALI"}),
    "el": frozenset({"GREEK"}),
    "gu": frozenset({"GUJARATI"}),
    "he": frozenset({"HEBREW"}),
    "hy": frozenset({"ARMENIAN"}),
    "ja": frozenset({"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"}),
    "ka": frozenset({"GEORGIAN"}),
    "ko": frozenset({"HANGUL"}),
    "pa": frozenset({"GURMUKHI"}),
    "ta": frozenset({"TAMIL"}),
    "te": frozenset({"TELUGU"}),
    "th": frozenset({"THAI"}),
    "zh": frozenset({"CJK"}),
}
_LATIN_LANGUAGES = (
    *("af", "az", "ca", "cs", "cy", "da", "de", "en", "eo", "es", "et", "eu", "fi", "fr", "ga"),
    *("hr", "hu", "id", "is", "it", "lt", "lv", "nb", "nl", "pl", "pt", "ro", "sk", "sl", "sq"),
    *("sv", "sw", "tr", "vi"),
)
LANGUAGES = tuple(sorted([*_SCRIPTS, *_LATIN_LANGUAGES]))
_OTHER_CODES = {"no": "nb", "iw": "he", "in": "id"}

MAX_TEXTS = 30_000  # of a language
MAX_CHARS = 300  # of a text
MIN_PIECE, MAX_PIECE = 5, 20  # characters, up to the next blank
_TEST_SHARE, _VALID_SHARE = 0.08, 0.03
_LOANS = 3  # an English message that so many languages leave as it is does not count as English
_MIN_LETTERS = 3

_GETTEXT = re.compile(r"/([\w@-]+)/LC_MESSAGES/[^/]+\.(?:po|mo)$")
# `translations/de.json` and `translations/config/de-<checksum>.json`; `locales/de/dags.json`.
_JSON = re.compile(
    r"(?P<folder>.*/translations/(?:[\w-]+/)?)(?P<language>[A-Za-z]{2,3}(?:-[A-Za-z0-9]{2,8})?)"
    r"(?:-[0-9a-f]{32})?\.json"
    r"|(?P<locales>.*/locales/)(?P<locale>[\w-]+)/(?P<name>[^/]+)\.json"
)


Splits: TypeAlias = dict[str, list[tuple[str, str]]]  # texts and their languages


class Message(NamedTuple):
    """What a catalog says in a language; `english` is None if that is not known."""

    language: str
    text: str
    english: str | None


def language_of(code: str) -> str | None:
    """The language of a catalog's code ('pt_BR', 'zh-Hant', 'sr@latin'); None: not one of ours."""
    name = re.split(r"[-_@.]", code.lower())[0]
    name = _OTHER_CODES.get(name, name)
    return name if name in LANGUAGES else None


def key_of(text: str) -> str:
    """The letters of a text without case: texts with the same ones count as the same."""
    return "".join(x for x in text.casefold() if unicodedata.category(x)[0] in "LM")


def is_written_in(text: str, language: str) -> bool:
    """Whether the text has enough letters, and half of them are in the language's script."""
    scripts = _SCRIPTS.get(language, _LATIN)
    letters = [x for x in text if x.isalpha()]
    own = sum(_script(x) in scripts for x in letters)
    return len(letters) >= _MIN_LETTERS and 2 * own >= len(letters)


def messages(wheel: zipfile.ZipFile) -> Iterator[Message]:
    """Every translated message of a wheel's catalogs in one of our languages, and in English."""
    yield from _gettext_messages(wheel)
    yield from _json_messages(wheel)


class Texts:
    """Texts by language and key: the first text of each key stays."""

    def __init__(self) -> None:
        self._texts: dict[str, dict[str, str]] = {language: {} for language in LANGUAGES}
        self._untranslated: dict[str, set[str]] = {}  # languages by the key of an English text
        self.dropped: Counter[str] = Counter()

    def add(self, messages: Iterable[Message]) -> None:
        """Add the messages that are texts of their language."""
        for language, raw, english in messages:
            text = unicodedata.normalize("NFC", tidy(raw))
            reason = unwanted(raw.strip()) or _fault(text, language)
            key = key_of(text)
            if reason is not None:
                self.dropped[reason] += 1
            elif english is not None and language != "en" and key == key_of(english):
                self._untranslated.setdefault(key, set()).add(language)
                self.dropped["not translated"] += 1
            else:
                self._texts[language].setdefault(key, text)

    def of_languages(self) -> dict[str, dict[str, str]]:
        """By language, the texts that no other language has, by their keys."""
        languages = Counter(key for texts in self._texts.values() for key in texts)
        loans = {key for key, names in self._untranslated.items() if len(names) >= _LOANS}
        kept: dict[str, dict[str, str]] = {}
        for language, texts in self._texts.items():
            alone = {key: text for key, text in texts.items() if languages[key] == 1}
            self.dropped["in several languages"] += len(texts) - len(alone)
            if language == "en":
                english = {key: text for key, text in alone.items() if key not in loans}
                self.dropped["English, but the same elsewhere"] += len(alone) - len(english)
                alone = english
            kept[language] = alone
        return kept


def build(folder: Path) -> list[str]:
    """Write `train.tsv`, `pieces.tsv`, `valid.tsv`, `test.tsv`, `package.tsv`, `NOTICES.txt`."""
    texts = Texts()
    apart: dict[str, set[str]] = {language: set() for language in LANGUAGES}  # keys
    lines: list[str] = []
    notices: list[str] = []
    # The packages that are held out come first: of texts with the same key, theirs stays.
    for package in sorted(PACKAGES, key=lambda x: x.wheel.name not in HELD_OUT):
        with open_wheel(package.wheel, cache_beside(folder)) as wheel:
            found = list(messages(wheel))
            notices.append(notice(package, wheel))
        texts.add(found)
        if package.wheel.name in HELD_OUT:
            for message in found:
                apart[message.language].add(key_of(message.text))
        count = len({message.language for message in found})
        lines.append(f"{package}: {len(found):,} messages in {count} languages")
    names = [Message(x, name, None) for x in LANGUAGES for name in cldr_names(Locale(x))]
    texts.add(names)
    lines.append(f"CLDR: {len(names):,} names")
    notices.append(dates.cldr_notice())
    (folder / "NOTICES.txt").write_bytes(notices_text(notices).encode())
    kept = texts.of_languages()
    lines.append(f"dropped: {_counts(texts.dropped)}")
    splits = split(kept, apart)
    splits["pieces"] = new_pieces(splits)
    for name, labelled in splits.items():
        lines.append(write_pairs(folder / f"{name}.tsv", labelled))
        lines.append(f"  {_counts(Counter(language for _, language in labelled))}")
    return lines


def split(texts: dict[str, dict[str, str]], apart: dict[str, set[str]]) -> Splits:
    """Texts and their languages by split, from texts by key; the keys `apart` are held out.

    Each language has at most MAX_TEXTS that are not held out: the first by SHA-256, which also
    gives the split.
    """
    splits: Splits = {x: [] for x in ("train", "valid", "test", "package")}
    for language, by_key in texts.items():
        own = apart[language]
        splits["package"] += [(text, language) for key, text in by_key.items() if key in own]
        for key in by_digest(by_key.keys() - own)[:MAX_TEXTS]:
            splits[_split_of(key)].append((by_key[key], language))
    return {name: sorted(labelled) for name, labelled in splits.items()}


def pieces(text: str) -> list[str]:
    """The text cut before blanks into at most 32 pieces whose lengths follow from its SHA-256.

    If no blank comes soon, as in Chinese, it is cut between characters.
    """
    found: list[str] = []
    for byte in sha256(text.encode()).digest():
        size = MIN_PIECE + byte % (MAX_PIECE - MIN_PIECE + 1)
        end = text.find(" ", size)
        if not 0 < end <= 2 * MAX_PIECE:
            end = size if len(text) > 2 * MAX_PIECE else len(text)
        found.append(text[:end])
        text = text[end:].lstrip()
    return [piece for piece in found if piece]


def new_pieces(splits: Splits) -> list[tuple[str, str]]:
    """The pieces of training texts that no split holds and only one language has."""
    known = {key_of(text) for labelled in splits.values() for text, _ in labelled}
    found: dict[str, dict[str, str]] = {}  # pieces by key, and by language the first
    for text, language in splits["train"]:
        for piece in pieces(text):
            key = key_of(piece)
            if key not in known and is_written_in(piece, language):
                found.setdefault(key, {}).setdefault(language, piece)
    return sorted(
        (piece, language)
        for own in found.values()
        for language, piece in own.items()
        if len(own) == 1
    )


def _fault(text: str, language: str) -> str | None:
    if len(text) > MAX_CHARS:
        return "too long"
    return None if is_written_in(text, language) else "without letters of the script"


@cache
def _script(character: str) -> str:
    return unicodedata.name(character, "").split(" ")[0]


def _split_of(key: str) -> str:
    place = int.from_bytes(sha256(f"split {key}".encode()).digest()[:8], "big") / 2**64
    if place < _TEST_SHARE:
        return "test"
    return "valid" if place < _TEST_SHARE + _VALID_SHARE else "train"


def _gettext_messages(wheel: zipfile.ZipFile) -> Iterator[Message]:
    for path, catalog in gettext_catalogs(wheel, _GETTEXT):
        match = _GETTEXT.search(path)
        language = language_of(match[1]) if match is not None else None
        if language is None:
            continue
        for entry in catalog:
            texts = entry.msgstr_plural.values() if entry.msgid_plural else [entry.msgstr]
            for text in () if is_draft(entry) else filter(None, texts):
                yield Message(language, text, entry.msgid)
                yield Message("en", entry.msgid, None)


def _json_messages(wheel: zipfile.ZipFile) -> Iterator[Message]:
    found: dict[tuple[str, ...], dict[str, str]] = {}  # by what the languages share, by code
    for name in sorted(wheel.namelist()):
        match = _JSON.fullmatch(name)
        if match is not None:
            shared = tuple(match[x] or "" for x in ("folder", "locales", "name"))
            found.setdefault(shared, {})[match["language"] or match["locale"]] = name
    for names in found.values():
        if "en" in names:
            english = json_messages(json.loads(wheel.read(names["en"])))
            for code, name in names.items():
                language = language_of(code)
                if language is not None:
                    own = json_messages(json.loads(wheel.read(name)))
                    yield from (Message(language, own[x], english.get(x)) for x in own)


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))
