"""The rows of `score`: the body that asks for them, and their form in plain text."""

import argparse
import itertools
import math
from collections.abc import Sequence
from typing import Any

from service.cli.answers import Answer, CommandError
from service.cli.rows import COLUMNS, FURTHER_COLUMNS

_FIELDS = ("source", "context", "label", "unknown")
_FLAGS = ("eos", "tokens", "adapt", "percentile", "guesses")
_COUNTS = {"chars", "percentile_texts"}


def score_body(options: argparse.Namespace, texts: Sequence[str]) -> dict[str, Any]:
    """The body that asks for the scores of some texts."""
    body: dict[str, Any] = {"text": list(texts)}
    body |= {x: getattr(options, x) for x in _FIELDS if getattr(options, x) is not None}
    body |= {x: True for x in _FLAGS if getattr(options, x)}
    return body | ({"units": "word"} if options.words else {})


def score_columns(options: argparse.Namespace) -> list[str]:
    """The columns of TSV."""
    asked = [names for flag, names in FURTHER_COLUMNS.items() if getattr(options, flag)]
    return [*itertools.chain(*asked), *COLUMNS["score"]]


def figure_columns(options: argparse.Namespace) -> dict[str, bool]:
    """The columns of a table with figures only; whether each has whole numbers.

    Raises CommandError for options whose figures are lists.
    """
    for name in ("tokens", "words"):
        if getattr(options, name):
            raise CommandError(
                f"--{name}: a table has one row of figures for each text; use NDJSON"
            )
    return {name: name in _COUNTS for name in score_columns(options) if name != "text"}


def score_form(options: argparse.Namespace, result: Answer) -> str:
    """The form of a row in plain text."""
    form = "{bits_per_char}\t{text}"
    if options.label is not None:
        form = f"{math.exp(result['logprob']):.4f}\t{{text}}"
    if options.guesses:
        form = f"{_guesses_in_words(result)}\t{form}"
    if options.percentile:
        found = result["percentile"]
        form = ("-" if found is None else f"{found:.2f}") + "\t" + form
    return form


def _guesses_in_words(result: Answer) -> str:
    """To three digits; `>` before a lower bound, a dash for a text that would never be tried."""
    found, low = result["guesses"], result["guesses_low"]
    if low is None:
        return "-"
    return f">{low:.3g}" if found is None else f"{found:.3g}"
