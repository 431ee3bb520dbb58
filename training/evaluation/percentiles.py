"""The distribution of bits per character of held-out texts, by length.

N texts, V vocabulary. The texts are the documents of a split or, for running text, stretches of it:
pieces that do not overlap and begin and end with whole words, as a person would paste them.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from service.bundle.percentiles import DECIMALS, LengthRange, Percentiles
from service.bundle.text import BOS_ID, EOS_ID, Vocabulary
from training.data.corpus import Split

# Fewer texts say too little: with 30, an interval is at least ten percent wide.
LEAST_TEXTS = 30
# There are many documents, of all lengths: a few ranges with many texts show the rare ones.
_RANGE_TEXTS = 100
_MOST_RANGES = 8
# For stretches: where a range begins, in characters. Each is longer than the last by one factor.
_STRETCH_BOUNDS = (8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256, 362, 512)
_MAX_TEXTS = 10_000
_MAX_RANGE_CHARS = 100_000
_MAX_TEXT_CHARS = 4096
# How far apart the ranks of listed texts may be, as a share of their distance from an end.
_STEP_ABOVE = 1.1
_STEP_BELOW = 1.3
_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0

_Offsets = npt.NDArray[np.int64]
_Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts of one split: characters `ids[starts[i] : ends[i]]`, without bos and eos."""

    starts: _Offsets  # [N]
    ends: _Offsets  # [N]

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def chars(self) -> _Offsets:
        """[N] their lengths."""
        return self.ends - self.starts


# Scores texts: from a split and N texts to their nats without and with the end, [N] each.
Scorer = Callable[[Split, Texts], tuple[Floats, Floats]]


def percentiles(
    split: Split,
    name: Literal["valid", "test"],
    vocab: Vocabulary,
    kind: Literal["documents", "stretches"],
    score: Scorer,
) -> Percentiles | None:
    """The table of a split called `name`; None if it has too few texts."""
    if kind == "documents":
        found = _document_ranges(split, score)
    else:
        found = _stretch_ranges(split, vocab, score)
    lengths = list(found)
    return Percentiles(split=name, texts=kind, lengths=lengths) if lengths else None


def _document_ranges(split: Split, score: Scorer) -> Iterable[LengthRange]:
    texts = documents_of(split)
    if len(texts) < LEAST_TEXTS:
        return
    plain, with_eos = score(split, texts)
    order = np.argsort(texts.chars, kind="stable")
    begin = 0
    for first, last in merged(texts.chars[order]):
        which = order[first:last]
        most = int(texts.chars[which[-1]])
        # A length between two ranges belongs to the longer texts.
        least = begin or int(texts.chars[which[0]])
        chars = texts.chars[which]
        yield length_range(least, most, plain[which] / chars, with_eos[which] / chars)
        begin = most + 1


def _stretch_ranges(split: Split, vocab: Vocabulary, score: Scorer) -> Iterable[LengthRange]:
    is_blank = np.array([token.isspace() for token in vocab.tokens])[split.ids]
    is_blank |= (split.ids == BOS_ID) | (split.ids == EOS_ID)
    for least, following in pairwise(_STRETCH_BOUNDS):
        texts = stretches_of(split, is_blank, least, following - 1)
        if len(texts) < LEAST_TEXTS:
            return
        plain, with_eos = score(split, texts)
        yield length_range(least, following - 1, plain / texts.chars, with_eos / texts.chars)


def documents_of(split: Split) -> Texts:
    """The documents that are not empty; an evenly spread selection if there are very many."""
    starts, ends = split.starts[:-1] + 1, split.starts[1:] - 1
    chars = ends - starts
    which = np.flatnonzero((chars > 0) & (chars <= _MAX_TEXT_CHARS))
    if len(which) > _MAX_TEXTS:
        which = which[np.linspace(0, len(which) - 1, _MAX_TEXTS).astype(np.int64)]
    return Texts(np.asarray(starts[which], np.int64), np.asarray(ends[which], np.int64))


def merged(chars: Sequence[int] | _Offsets) -> list[tuple[int, int]]:
    """Ranges of indices into N rising lengths: enough texts in each, and no length in two."""
    lengths = np.asarray(chars)
    total = len(lengths)
    wanted = max(_RANGE_TEXTS, -(-total // _MOST_RANGES))
    found: list[tuple[int, int]] = []
    first = 0
    while first < total:
        last = total
        if first + wanted < total:
            last = int(np.searchsorted(lengths, lengths[first + wanted - 1], side="right"))
        if total - last < wanted / 2:
            last = total
        found.append((first, last))
        first = last
    return found


def stretches_of(split: Split, is_blank: _Mask, least: int, most: int) -> Texts:
    """Stretches of `least` to `most` characters, spread over the documents of the split.

    Their lengths are spread evenly. Text without white space is cut anywhere. `is_blank` says for
    every id of the split whether it stands between words.
    """
    word_starts = np.flatnonzero(~is_blank[1:] & is_blank[:-1]) + 1
    word_ends = np.flatnonzero(is_blank[1:] & ~is_blank[:-1]) + 1
    wanted = max(LEAST_TEXTS, _MAX_RANGE_CHARS // most)
    gap = max(0, len(split.ids) // wanted - most)
    found: list[tuple[int, int]] = []
    for document in range(split.documents):
        place, stop = int(split.starts[document]) + 1, int(split.starts[document + 1]) - 1
        while True:
            start = _next(word_starts, place, place + least) or place
            if start + least > stop:
                break
            length = least + int((len(found) * _GOLDEN) % 1.0 * (most + 1 - least))
            latest = min(start + most, stop)
            place = min(start + length, latest)
            end = (
                _next(word_ends, place, latest + 1)
                or _last(word_ends, start + least, place)
                or place
            )
            found.append((start, end))
            place = end + gap
    bounds = np.array(found, np.int64).reshape(-1, 2)
    return Texts(bounds[:, 0], bounds[:, 1])


def _next(places: _Offsets, first: int, end: int) -> int | None:
    """The first of the rising places in [first, end)."""
    i = int(np.searchsorted(places, first))
    return int(places[i]) if i < len(places) and places[i] < end else None


def _last(places: _Offsets, first: int, end: int) -> int | None:
    """The last of the rising places in [first, end)."""
    i = int(np.searchsorted(places, end))
    return int(places[i - 1]) if i and places[i - 1] >= first else None


def length_range(least: int, most: int, plain: Floats, with_eos: Floats) -> LengthRange:
    """The order statistics of nats a character, [N], without and with the end."""
    ranks = listed_ranks(len(plain))
    listed = np.array(ranks) - 1
    values = [np.round(np.sort(x)[listed] / math.log(2), DECIMALS) for x in (plain, with_eos)]
    return LengthRange(
        least_chars=least,
        most_chars=most,
        texts=len(plain),
        ranks=ranks,
        bits_per_char=values[0].tolist(),
        bits_per_char_with_eos=values[1].tolist(),
    )


def listed_ranks(texts: int) -> list[int]:
    """The ranks that are kept of so many texts: both ends, dense near them, densest near the upper.

    Between two of them, a rate of false alarms is known to a tenth of itself, which is less than
    the uncertainty with that many texts.
    """
    above = {texts + 1 - x for x in _distances(texts, _STEP_ABOVE)}
    below = set(_distances(texts, _STEP_BELOW))
    half = texts // 2
    return sorted({x for x in above if x > half} | {x for x in below if x <= half} | {1, texts})


def _distances(texts: int, step: float) -> Iterable[int]:
    distance = 1
    while distance <= texts:
        yield distance
        distance = max(distance + 1, int(distance * step))
