"""Metrics of translations: exact match, error rates, BLEU and chrF."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sacrebleu
from rapidfuzz.distance.Levenshtein import distance as edit_distance

from service.bundle.encoder_decoder import MetricName

# Symbols of a text that an error rate counts.
Split = Callable[[str], Sequence[str]]
# For these less is better, for the others more.
ERRORS: tuple[MetricName, ...] = ("loss", "word_error_rate", "symbol_error_rate")


def measure(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    split: Split,
    corpus_metrics: bool = True,
) -> dict[MetricName, float]:
    """Every metric of one hypothesis for each source, against all targets of that source.

    `exact_match`: share of hypotheses that are one of the targets. `word_error_rate`: the rest, as
    grapheme-to-phoneme work calls it. `symbol_error_rate`: edits to the nearest target over that
    target's symbols (phonemes). `bleu`, `chrf`: sacrebleu's corpus scores, 0 to 100, with its
    defaults; left out without `corpus_metrics`, BLEU also where it is not defined.
    """
    hits = sum(text in wanted for text, wanted in zip(hypotheses, references, strict=True))
    exact = hits / len(hypotheses)
    edits = symbols = 0
    for text, wanted in zip(hypotheses, references, strict=True):
        mine = split(text)
        distance, length = min((edit_distance(mine, x), len(x)) for x in map(split, wanted))
        edits += distance
        symbols += length
    found: dict[MetricName, float] = {
        "exact_match": exact,
        "word_error_rate": 1.0 - exact,
        "symbol_error_rate": edits / max(1, symbols),
    }
    if corpus_metrics:
        lists = _by_reference(references)
        if has_bleu(references):
            found["bleu"] = sacrebleu.corpus_bleu(hypotheses, lists).score
        found["chrf"] = sacrebleu.corpus_chrf(hypotheses, lists).score
    return found


def has_bleu(references: Sequence[Sequence[str]]) -> bool:
    """Whether a target has the four words that BLEU needs; without them it is 0 for any text."""
    targets = [target for wanted in references for target in wanted]
    return bool(sacrebleu.corpus_bleu(targets, [targets]).totals[-1])


def _by_reference(references: Sequence[Sequence[str]]) -> list[Any]:
    """As sacrebleu takes them: a list a reference, with None where a source has fewer."""
    deepest = max(map(len, references))
    return [[x[i] if i < len(x) else None for x in references] for i in range(deepest)]


def share_error(share: float, count: int) -> float:
    """The standard error of a share of `count` draws, with two of each kind added.

    They keep it above 0 where all or none are right (Agresti and Coull 1998).
    """
    share, count = (share * count + 2) / (count + 4), count + 4
    return math.sqrt(share * (1 - share) / count)


def rank_of(metric: MetricName, values: Mapping[MetricName, float]) -> float:
    """The metric's value, turned so that less is better."""
    return values[metric] if metric in ERRORS else -values[metric]
