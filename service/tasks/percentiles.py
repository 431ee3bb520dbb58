"""Where a text ranks among the held-out texts of its length."""

import math
from bisect import bisect_left
from dataclasses import dataclass

from service.bundle.percentiles import LengthRange, Percentiles

# The quantile of the normal distribution for an interval of 95 %.
_QUANTILE = 1.959964
# Bits a character. Listed values are rounded, and machines differ in the last digits: without a
# tolerance, a text could count as more surprising than its own copy.
_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Standing:
    """The percentage of held-out texts of a text's length that are less surprising."""

    percentile: float  # 0 to 100
    low: float  # of the 95 % interval of the share among all such texts
    high: float
    texts: int  # held-out texts behind it


def standing(
    table: Percentiles, *, chars: int, bits_per_char: float | None, eos: bool
) -> Standing | None:
    """Where a text of this length and surprise ranks; None if the table has no such texts."""
    if bits_per_char is None:
        return None
    for found in table.lengths:
        if found.least_chars <= chars <= found.most_chars:
            return _standing_in(found, bits_per_char - _TOLERANCE, eos=eos)
    return None


def _standing_in(found: LengthRange, bits_per_char: float, *, eos: bool) -> Standing:
    """The interval allows for the sample and for the unlisted texts between two listed ones."""
    values = found.bits_per_char_with_eos if eos else found.bits_per_char
    above = bisect_left(values, bits_per_char)  # the first listed text that is not less surprising
    if above == 0:
        least = most = count = 0.0
    elif above == len(values):
        least = most = count = found.texts
    else:
        least, most = found.ranks[above - 1], found.ranks[above] - 1
        below = values[above - 1]
        part = (bits_per_char - below) / (values[above] - below)
        count = least + part * (most - least)
    return Standing(
        percentile=100.0 * count / found.texts,
        low=100.0 * wilson_interval(least, found.texts)[0],
        high=100.0 * wilson_interval(most, found.texts)[1],
        texts=found.texts,
    )


def wilson_interval(count: float, total: int) -> tuple[float, float]:
    """The 95 % interval of a probability, after `count` of `total` independent trials.

    The score interval of Wilson (Probable inference, the law of succession, and statistical
    inference, JASA 22, 1927), which Brown, Cai and DasGupta (Interval estimation for a binomial
    proportion, Statistical Science 16, 2001) recommend.
    """
    share, square = count / total, _QUANTILE**2
    middle = share + square / (2 * total)
    half = _QUANTILE * math.sqrt(share * (1 - share) / total + square / (4 * total**2))
    scale = 1 + square / total
    # Rounding must not leave the counted share outside.
    low, high = (middle - half) / scale, (middle + half) / scale
    return max(0.0, min(low, share)), min(1.0, max(high, share))
