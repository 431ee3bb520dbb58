"""The data sets by name.

This file needs the standard library only: a builder's own libraries are imported when it runs.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from training.datasets.errors import DatasetError


def _builder(module: str) -> Callable[[Path], list[str]]:
    def build(folder: Path) -> list[str]:
        try:
            found = import_module(f"training.datasets.{module}")
        except ModuleNotFoundError as error:
            raise DatasetError(
                f"{error.name} is not installed; in Unroll's own folder, run "
                "pip install '.[training]'"
            ) from error
        folder.mkdir(parents=True, exist_ok=True)
        lines: list[str] = found.build(folder)
        return lines

    return build


# A builder writes into a folder and returns lines that say what the data set holds.
DATASETS: dict[str, Callable[[Path], list[str]]] = {
    "g2p-en": _builder("cmudict"),
    "dates": _builder("dates"),
    "strings-en-de": _builder("strings"),
    "bible-en-es": _builder("bible"),
    "ding-en-de": _builder("ding"),
    "shakespeare": _builder("shakespeare"),
    "austen": _builder("austen"),
    "languages": _builder("languages"),
    "accents": _builder("accents"),
    "domains": _builder("domains"),
    "name-origins": _builder("names"),
    "date-parts": _builder("date_parts"),
}
