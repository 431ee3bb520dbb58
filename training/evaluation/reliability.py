"""How far confidences can be trusted: calibration error, reliability bins, coverage.

N answers, each with a confidence and whether it is right.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from service.bundle.confidence import MAX_BINS, Confidence, ReliabilityBin
from training.evaluation.metrics import share_error

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

# A threshold is rounded down to so many decimals, so that it keeps the answer that it is taken of.
_DECIMALS = 4


def reliability_bins(
    confidences: Floats, right: Bools, count: int = MAX_BINS
) -> list[ReliabilityBin]:
    """At most `count` equally full bins, least sure first; of equals, the first."""
    return [
        ReliabilityBin(
            sources=len(places),
            confidence=round(float(confidences[places].mean()), 6),
            right=round(float(right[places].mean()), 6),
        )
        for places in _equal_masses(confidences, count)
    ]


def calibration_error(confidences: Floats, right: Bools, count: int = MAX_BINS) -> float:
    """The expected calibration error with `count` equally full bins.

    The mean over all answers of |mean confidence - share right| of the answer's bin (Naeini et al.
    2015, "Obtaining well calibrated probabilities using Bayesian binning"; Guo et al. 2017, "On
    calibration of modern neural networks"; they have bins of equal width).
    """
    return sum(
        len(places) * abs(float(confidences[places].mean() - right[places].mean()))
        for places in _equal_masses(confidences, count)
    ) / max(1, len(right))


def error_by_chance(confidences: Floats, count: int = MAX_BINS) -> float:
    """The mean of `calibration_error` where every confidence is exactly right.

    The share right of a bin is then nearly normal, and E|x| = deviation · sqrt(2 / π).
    """
    return sum(
        math.sqrt(2.0 / math.pi * float((confidences[places] * (1.0 - confidences[places])).sum()))
        for places in _equal_masses(confidences, count)
    ) / max(1, len(confidences))


def threshold_for(wanted: float, confidences: Floats, right: Bools) -> float | None:
    """The least confidence from which on a share `wanted` of answers is right; None for none."""
    order = np.argsort(-confidences, kind="stable")
    floors = np.floor(confidences[order] * 10**_DECIMALS) / 10**_DECIMALS
    shares = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    # Answers above the same threshold stay together.
    is_last = np.append(floors[1:] < floors[:-1], True)
    found = np.flatnonzero(is_last & (shares >= wanted))
    return float(floors[found[-1]]) if len(found) else None


def _equal_masses(confidences: Floats, count: int) -> Iterator[npt.NDArray[np.integer[Any]]]:
    """The places of each bin's answers."""
    order = np.argsort(confidences, kind="stable")
    yield from (x for x in np.array_split(order, count) if len(x))


def confidence_lines(confidence: Confidence | None) -> list[str]:
    """The measurements of a confidence, for people; nothing without one."""
    if confidence is None:
        return []
    lines = []
    for found in confidence.measured:
        lines.append(
            f"confidence, {found.split}: calibration error {found.ece:.4f} "
            f"({found.ece_by_chance:.4f} by chance), of other hypotheses {found.others_ece:.4f}"
        )
        for point in found.coverage:
            wanted = f"  {100 * point.wanted:.0f} % right:"
            if point.threshold is None or point.right is None:
                lines.append(f"{wanted} at no threshold")
                continue
            error = share_error(point.right, round(point.coverage * found.sources))
            lines.append(
                f"{wanted} confidence >= {point.threshold:.4f} answers {100 * point.coverage:.1f} "
                f"% of sources, {100 * point.right:.1f} % of them right (± {100 * error:.1f})"
            )
    return lines
