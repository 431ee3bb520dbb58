"""Date phrases in ten languages, and which part of the date each character is.

Source: the date patterns and the names of months and weekdays of CLDR (Unicode License v3), as
`babel` carries them (BSD). One label for each character: D the day, M the month, Y the year, W the
weekday, O anything else. The data are generated: a model that is always right knows these patterns
and no others. No date is in two splits.
"""

from collections.abc import Iterator
from datetime import date
from hashlib import sha256
from pathlib import Path

from babel import Locale
from babel.dates import format_date, tokenize_pattern

from training.datasets.dates import cldr_notice, days_by_digest
from training.datasets.pairs import write_pairs

LOCALES = ("cs", "de", "en_GB", "en_US", "es", "fr", "hu", "nl", "pl", "tr")
WIDTHS = ("full", "long", "medium", "short")
FIRST, LAST = date(1950, 1, 1), date(2049, 12, 31)
DATES, TEST_DATES = 6_000, 500

_LABELS = {"d": "D", "M": "M", "L": "M", "y": "Y", "E": "W", "c": "W"}
OTHER = "O"


def labelled(day: date, pattern: str, locale: str) -> tuple[str, str]:
    """The date in a CLDR pattern, and a label for each of its characters."""
    text = labels = ""
    for _, value in tokenize_pattern(pattern):
        if isinstance(value, str):  # what stands between two fields
            part, label = value, OTHER
        else:
            letter, width = value
            part, label = format_date(day, letter * width, locale), _LABELS.get(letter, OTHER)
        text += part
        labels += label * len(part)
    return text, labels


def phrases(found: list[date]) -> Iterator[tuple[str, str]]:
    """A phrase of each date and locale, in a width drawn by their SHA-256."""
    for day in found:
        for locale in LOCALES:
            drawn = sha256(f"{day} {locale}".encode()).digest()[0]
            pattern = Locale.parse(locale).date_formats[WIDTHS[drawn % len(WIDTHS)]].pattern
            yield labelled(day, pattern, locale)


def build(folder: Path) -> list[str]:
    """Write `train.tsv`, `test.tsv` and `NOTICES.txt`."""
    (folder / "NOTICES.txt").write_bytes(cldr_notice().encode())
    found = days_by_digest(FIRST, LAST)[: DATES + TEST_DATES]
    return [
        write_pairs(folder / "test.tsv", phrases(found[:TEST_DATES])),
        write_pairs(folder / "train.tsv", phrases(found[TEST_DATES:])),
    ]
