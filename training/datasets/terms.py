"""Names and number words, English to German.

Source: names of languages, territories, currencies and units from CLDR (Unicode License
v3), as `babel` carries them; number words spelt by `num2words` (LGPL: the library is only
called, and none of its code is in the output).
"""

import re

import num2words  # type: ignore[import-untyped]
from babel import Locale
from babel.units import get_unit_name

from training.datasets.pairs import Pair, by_digest

NUMBERS, ORDINALS = 1_500, 300  # how many
_LARGEST, _LARGEST_ORDINAL = 9_999, 999
_YEARS = re.compile(r"[0-9]{4}")


def names() -> list[Pair]:
    """Names that both languages have, sorted by kind and code.

    Currencies that are told apart by their years are left out: in CLDR the years of the two
    languages do not always agree.
    """
    english, german = Locale("en"), Locale("de")
    tables = (
        (english.languages, german.languages),
        (english.territories, german.territories),
        (english.currencies, german.currencies),
        (_units(english), _units(german)),
    )
    return [
        (source[code], target[code])
        for source, target in tables
        for code in sorted(set(source) & set(target))
        if not _YEARS.search(source[code])
    ]


def cldr_names(locale: Locale) -> list[str]:
    """A locale's names of languages, territories, currencies and units."""
    tables = (locale.languages, locale.territories, locale.currencies, _units(locale))
    return [name for table in tables for _, name in sorted(table.items())]


def numbers() -> list[Pair]:
    """Cardinals to 9,999, then ordinals to 999th: all up to 99, and a sample of the others."""
    cardinals = [*range(100), *_drawn("cardinal", 100, _LARGEST, NUMBERS - 100)]
    ordinals = [*range(1, 100), *_drawn("ordinal", 100, _LARGEST_ORDINAL, ORDINALS - 99)]
    return [_spelt(number, "cardinal") for number in cardinals] + [
        _spelt(number, "ordinal") for number in ordinals
    ]


def _units(locale: Locale) -> dict[str, str]:
    """Units that the locale itself names, by their CLDR identifier."""
    units = [str(unit) for unit in locale.unit_display_names]
    found = {unit: get_unit_name(unit, "long", locale) for unit in units}
    return {unit: name for unit, name in found.items() if name is not None}


def _drawn(kind: str, first: int, last: int, count: int) -> list[int]:
    """The first numbers in the order of their SHA-256, ascending."""
    texts = by_digest(f"{kind} {number}" for number in range(first, last + 1))
    return sorted(int(text.split()[1]) for text in texts[:count])


def _spelt(number: int, kind: str) -> Pair:
    english = num2words.num2words(number, lang="en", to=kind)
    return english, num2words.num2words(number, lang="de", to=kind)
