"""Date phrases, generated exactly: English to German, and both to ISO 8601.

Source: the month and weekday names and the date patterns of CLDR (Unicode License v3), as `babel`
carries them (BSD). Years are 1900 to 2099 and always have four digits, so that the century is
known. The form of a German phrase is a function of the English phrase. In `dates-iso`
a slash is English, month first, and a dot is German, day first.

No date is in two splits: a date of `test` is not in `train` in any form. Days without a year
and months without a day are split the same way, each by itself.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from hashlib import sha256
from importlib import resources
from pathlib import Path

import babel
from babel.dates import format_date

from training.datasets.pairs import Pair, by_digest, write_pairs

FIRST_YEAR, LAST_YEAR = 1900, 2099
EN_DE_DATES, ISO_DATES = 30_000, 33_000  # of the 73,049 dates in these years
TEST_FRACTION, VALID_FRACTION = 0.06, 0.03


@dataclass(frozen=True, slots=True)
class Form:
    """Two CLDR patterns that say the same; 'th' in quotes stands for st, nd, rd or th."""

    source: str
    target: str


# The English patterns of CLDR (full, long, medium, yMMMEd, yMd), then other common ones.
EN_DE = (
    Form("EEEE, MMMM d, y", "EEEE, d. MMMM y"),
    Form("MMMM d, y", "d. MMMM y"),
    Form("MMM d, y", "d. MMM y"),
    Form("EEE, MMM d, y", "E, d. MMM y"),
    Form("M/d/y", "d.M.y"),
    Form("MM/dd/y", "dd.MM.y"),
    Form("EEEE, d MMMM y", "EEEE, d. MMMM y"),
    Form("d MMMM y", "d. MMMM y"),
    Form("d MMM y", "d. MMM y"),
    Form("EEE d MMM y", "E, d. MMM y"),
    Form("MMMM d'th', y", "d. MMMM y"),
    Form("EEEE, MMMM d'th', y", "EEEE, d. MMMM y"),
    Form("d'th' 'of' MMMM y", "d. MMMM y"),
    Form("'the' d'th' 'of' MMMM, y", "d. MMMM y"),
    Form("y-MM-dd", "dd.MM.y"),
)
EN_DE_DAYS = (
    Form("MMMM d", "d. MMMM"),
    Form("MMM d", "d. MMM"),
    Form("d MMMM", "d. MMMM"),
    Form("MMMM d'th'", "d. MMMM"),
)
EN_DE_MONTHS = (Form("MMMM y", "MMMM y"), Form("MMM y", "MMM y"))

_ISO = "y-MM-dd"
EN_ISO = tuple(Form(form.source, _ISO) for form in EN_DE if form.source != _ISO)
DE_ISO = (
    Form("EEEE, d. MMMM y", _ISO),
    Form("EEEE, 'den' d. MMMM y", _ISO),
    Form("d. MMMM y", _ISO),
    Form("d. MMM y", _ISO),
    Form("E, d. MMM y", _ISO),
    Form("'der' d. MMMM y", _ISO),
    Form("dd.MM.y", _ISO),
    Form("d.M.y", _ISO),
    Form("E, dd.MM.y", _ISO),
    Form("EEEE, d.M.y", _ISO),
)


def phrase(day: date, pattern: str, locale: str) -> str:
    """The date in a CLDR pattern, with the ordinal's letters for 'th'."""
    pattern = pattern.replace("'th'", f"'{_ordinal_letters(day.day)}'")
    return format_date(day, pattern, locale=locale)


def en_de() -> dict[str, list[Pair]]:
    """Pairs by split, English to German, in the order of their dates' SHA-256."""
    splits: dict[str, list[Pair]] = {"train": [], "valid": [], "test": []}
    for name, days in _split(_days_of_all_years()[:EN_DE_DATES]).items():
        for day in days:
            form, case = _draw(day, "en-de", EN_DE)
            splits[name].append(_pair(day, form, case, "en", "de"))
    for name, days in _split(_days_of_one_year()).items():
        splits[name] += _each(days, EN_DE_DAYS)
    for name, days in _split(_months()).items():
        splits[name] += (_one(day, EN_DE_MONTHS) for day in days)
    return {name: list(dict.fromkeys(pairs)) for name, pairs in splits.items()}


def to_iso() -> dict[str, list[Pair]]:
    """Pairs by split, an English or a German phrase to YYYY-MM-DD."""
    locales = dict.fromkeys(EN_ISO, "en") | dict.fromkeys(DE_ISO, "de")
    splits = {}
    for name, days in _split(_days_of_all_years()[:ISO_DATES]).items():
        drawn = [(day, *_draw(day, "iso", (*EN_ISO, *DE_ISO))) for day in days]
        splits[name] = [_pair(day, form, case, locales[form], "en") for day, form, case in drawn]
    return splits


def cldr_notice() -> str:
    """The licence of the names and patterns, as distributed with babel."""
    file = resources.files("babel") / "locale-data" / "LICENSE.unicode"
    return f"CLDR, by babel {babel.__version__}: Unicode-3.0\n\n{file.read_text()}"


def build(folder: Path) -> list[str]:
    """Write `dates-en-de/` and `dates-iso/`, each `{train,valid,test}.tsv`, and `NOTICES.txt`."""
    (folder / "NOTICES.txt").write_bytes(cldr_notice().encode())
    lines = [f"babel {babel.__version__}"]
    for family, splits in (("dates-en-de", en_de()), ("dates-iso", to_iso())):
        for name, pairs in splits.items():
            lines.append(f"{family}/{write_pairs(folder / family / f'{name}.tsv', pairs)}")
    return lines


def _ordinal_letters(number: int) -> str:
    if number in (11, 12, 13):
        return "th"
    return {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")


def _pair(day: date, form: Form, case: int, source: str, target: str) -> Pair:
    """The source in one of three spellings; the target is always spelt correctly."""
    text = phrase(day, form.source, source)
    text = text.lower() if case in (0, 1) else text.upper() if case == 2 else text
    return text, phrase(day, form.target, target)


def _draw(day: date, family: str, forms: Sequence[Form]) -> tuple[Form, int]:
    """The form of a day, and its spelling: a number from 0 to 7."""
    digest = sha256(f"{family} {day}".encode()).digest()
    return forms[int.from_bytes(digest[:8], "big") % len(forms)], digest[8] % 8


def _one(day: date, forms: Sequence[Form]) -> Pair:
    form, case = _draw(day, "one", forms)
    return _pair(day, form, case, "en", "de")


def _each(days: Sequence[date], forms: Sequence[Form]) -> Iterator[Pair]:
    """Every form of every day, spelt as drawn."""
    for form in forms:
        for day in days:
            _, case = _draw(day, form.source, forms)
            yield _pair(day, form, case, "en", "de")


def _split(days: Sequence[date]) -> dict[str, list[date]]:
    """The first days are `test`, the next ones `valid`, the others `train`."""
    test = round(TEST_FRACTION * len(days))
    valid = test + round(VALID_FRACTION * len(days))
    return {
        "train": list(days[valid:]),
        "valid": list(days[test:valid]),
        "test": list(days[:test]),
    }


def days_by_digest(first: date, last: date) -> list[date]:
    """All days from the first to the last, in the order of their SHA-256."""
    count = (last - first).days + 1
    texts = by_digest(str(first + timedelta(days=i)) for i in range(count))
    return [date.fromisoformat(text) for text in texts]


def _days_of_all_years() -> list[date]:
    return days_by_digest(date(FIRST_YEAR, 1, 1), date(LAST_YEAR, 12, 31))


def _days_of_one_year() -> list[date]:
    return days_by_digest(date(2000, 1, 1), date(2000, 12, 31))  # a leap year


def _months() -> list[date]:
    return [day for day in _days_of_all_years() if day.day == 1]
