"""Names of people and the language or country of each, from faker's lists.

Source: the first and last names that `faker` (MIT) has for each locale of `ORIGINS`. The lists are
read from its source text; nothing is imported. A name that several origins share is there once for
each, so no model can always be right: it can only learn how likely each origin is.

The lists are short, nobody knows how they were made, and a name says little about a person. Do not
base decisions about people on it.
"""

import ast
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from training.datasets.catalogs import notice, package_of
from training.datasets.pairs import write_pairs
from training.datasets.registry import cache_beside, open_wheel

PACKAGE = package_of(
    "faker",
    "40.63.0",
    "36627c20b575b4138f54b6c21f8703e9ab122fd487aca11319beec2aa6ca7232",
    "MIT",
    "LICENSE.txt",
)
ORIGINS = {
    "az_AZ": "Azerbaijani", "cs_CZ": "Czech", "da_DK": "Danish", "de_DE": "German",
    "en_GB": "English", "en_US": "English", "es_ES": "Spanish", "et_EE": "Estonian",
    "fi_FI": "Finnish", "fr_FR": "French", "ga_IE": "Irish", "hr_HR": "Croatian",
    "hu_HU": "Hungarian", "id_ID": "Indonesian", "is_IS": "Icelandic", "it_IT": "Italian",
    "lt_LT": "Lithuanian", "lv_LV": "Latvian", "nl_NL": "Dutch", "no_NO": "Norwegian",
    "pt_PT": "Portuguese", "ro_RO": "Romanian", "sk_SK": "Slovak", "sl_SI": "Slovenian",
    "sv_SE": "Swedish", "tr_TR": "Turkish", "uz_UZ": "Uzbek", "zu_ZA": "Zulu",
}  # fmt: skip

_LISTS = re.compile(r"(first|last)_names(_\w+)?")


def names_in(source: str) -> list[str]:
    """The names in the lists of a provider's source, each once, in order."""
    found: dict[str, None] = {}
    for node in ast.walk(ast.parse(source)):
        for value in _values(node):
            for text in ast.walk(value):
                if isinstance(text, ast.Constant) and isinstance(text.value, str):
                    found[unicodedata.normalize("NFC", text.value.strip())] = None
    return [name for name in found if name]


def build(folder: Path) -> list[str]:
    """Write `names.tsv` and `NOTICES.txt`."""
    pairs: list[tuple[str, str]] = []
    with open_wheel(PACKAGE.wheel, cache_beside(folder)) as wheel:
        for locale, origin in ORIGINS.items():
            source = wheel.read(f"faker/providers/person/{locale}/__init__.py").decode()
            pairs += [(name, origin) for name in names_in(source)]
        (folder / "NOTICES.txt").write_bytes(notice(PACKAGE, wheel).encode())
    counts = Counter(origin for _, origin in dict.fromkeys(pairs))
    return [
        write_pairs(folder / "names.tsv", pairs),
        ", ".join(f"{origin} {count:,}" for origin, count in sorted(counts.items())),
    ]


def _values(node: ast.AST) -> Iterator[ast.expr]:
    """What a list of names is set to."""
    targets: list[ast.expr] = []
    value: ast.expr | None = None
    if isinstance(node, ast.Assign):
        targets, value = node.targets, node.value
    elif isinstance(node, ast.AnnAssign):
        targets, value = [node.target], node.value
    for target in targets:
        if isinstance(target, ast.Name) and _LISTS.fullmatch(target.id) and value is not None:
            yield value
