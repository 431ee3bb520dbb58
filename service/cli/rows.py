"""Answers as rows: one line each, as text, TSV or JSON."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

# The columns of TSV, which has a header.
COLUMNS = {
    "generate": ("prompt", "choice", "finish_reason", "seed", "text"),
    "score": ("bits_per_char", "bits", "logprob", "chars", "text"),
    "translate": (
        "source",
        "rank",
        "confidence",
        "score",
        "logprob",
        "finish_reason",
        "text",
    ),
    "classify": ("text", "rank", "probability", "logprob", "label"),
    "tag": ("text", "rank", "start", "end", "probability", "label", "tagged"),
    "infill": ("text", "rank", "posterior", "logprob", "suffix_logprob", "fill"),
}

# Columns before these, if requested.
FURTHER_COLUMNS = {
    "percentile": ("percentile", "percentile_low", "percentile_high", "percentile_texts"),
    "guesses": ("guesses", "guesses_low", "guesses_high"),
}


def write_head(form: str, columns: Sequence[str]) -> None:
    """Write the header, if the format has one."""
    if form == "tsv":
        sys.stdout.write("\t".join(columns) + "\n")


def write_row(
    form: str, row: Mapping[str, Any], text_form: str, columns: Sequence[str] = ()
) -> None:
    """Write a row; `text_form` is its form in plain text."""
    sys.stdout.write(row_line(form, row, text_form, columns) + "\n")


def row_line(form: str, row: Mapping[str, Any], text_form: str, columns: Sequence[str] = ()) -> str:
    """A row without its line end; `text_form` is its form in plain text."""
    if form == "json":
        return json.dumps(dict(row), ensure_ascii=False)
    if form == "tsv":
        return "\t".join(_escaped(row.get(name)) for name in columns or row)
    return text_form.format(**row)


def _escaped(value: Any) -> str:
    """A field of TSV; characters that would end it are escaped with a backslash."""
    text = "" if value is None else str(value)
    for raw, shown in (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(raw, shown)
    return text
