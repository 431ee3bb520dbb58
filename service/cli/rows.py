"""Answers as rows: a line each, as text, TSV or JSON."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

# Of TSV, which has a head.
COLUMNS = {
    "generate": ("prompt", "choice", "finish_reason", "seed", "text"),
    "score": ("bits_per_char", "bits", "logprob", "chars", "text"),
    "translate": ("source", "rank", "score", "logprob", "finish_reason", "text"),
}


def write_head(form: str, columns: Sequence[str]) -> None:
    """Write the names of the columns, where the format has them."""
    if form == "tsv":
        sys.stdout.write("\t".join(columns) + "\n")


def write_row(
    form: str, row: Mapping[str, Any], text_form: str, columns: Sequence[str] = ()
) -> None:
    """Write a row; `text_form` is how plain text shows it."""
    if form == "json":
        line = json.dumps(dict(row), ensure_ascii=False)
    elif form == "tsv":
        line = "\t".join(_escaped(row[name]) for name in columns or row)
    else:
        line = text_form.format(**row)
    sys.stdout.write(line + "\n")


def _escaped(value: Any) -> str:
    """A field of TSV: what would end it is written with a backslash."""
    text = "" if value is None else str(value)
    for raw, shown in (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(raw, shown)
    return text
