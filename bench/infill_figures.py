"""From what each way did with each gap to the figures of `bench.infill`."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rapidfuzz.distance.Levenshtein import distance as edit_distance

from bench.infill_gaps import NUM_FILLS, Gap, Size
from bench.infill_rows import Way

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What a way did with each of [N] gaps of one size."""

    chars: Floats  # [N] of the truth
    errors: Floats  # [N] edit distance of the first fill
    is_first: Floats  # [N] 1 where the first fill is the truth
    is_found: Floats  # [N] 1 where one of the first NUM_FILLS is
    nats: Floats  # [N] -log p(the truth); NaN where there is no such figure
    seconds: Floats  # [N] of processor time
    found_mass: Floats  # [N] NaN where there is none


@dataclass(frozen=True, slots=True)
class Figures:
    """A row of the table, with the standard errors that 95 % intervals are twice of."""

    way: str
    size: str
    gaps: int
    error_rate: float  # edits / characters
    error_rate_se: float
    first: float  # share of gaps
    found: float
    nats: float | None
    nats_se: float | None
    found_mass: float | None
    seconds: float


async def outcomes(way: Way, gaps: Sequence[Gap], size: Size) -> Outcomes:
    """Fill the gaps one after another."""
    rows = []
    for gap in gaps:
        begin = time.process_time()
        guess = await way.fill(gap, size)
        seconds = time.process_time() - begin
        texts = guess.texts[:NUM_FILLS]
        best = texts[0] if texts else ""
        nats = await guess.nats()
        rows.append(
            (
                len(gap.truth),
                edit_distance(best, gap.truth),
                best == gap.truth,
                gap.truth in texts,
                np.nan if nats is None else nats,
                seconds,
                np.nan if guess.found_mass is None else guess.found_mass,
            )
        )
    return Outcomes(*np.array(rows, np.float64).T)


def figures(way: str, size: Size, found: Outcomes) -> Figures:
    """The means, and the standard errors of two of them."""
    rate, error = ratio(found.errors, found.chars)
    nats, nats_se = (None, None) if np.isnan(found.nats).any() else ratio(found.nats)
    mass = None if np.isnan(found.found_mass).any() else float(found.found_mass.mean())
    return Figures(
        way=way,
        size=size.name,
        gaps=len(found.chars),
        error_rate=rate,
        error_rate_se=error,
        first=float(found.is_first.mean()),
        found=float(found.is_found.mean()),
        nats=nats,
        nats_se=nats_se,
        found_mass=mass,
        seconds=float(found.seconds.mean()),
    )


def ratio(parts: Floats, wholes: Floats | None = None) -> tuple[float, float]:
    """The sum of [N] parts over that of their wholes (each 1), and its standard error.

    The error is that of a ratio estimate (Cochran, "Sampling Techniques", section 2.11).
    """
    wholes = np.ones_like(parts) if wholes is None else wholes
    value = parts.sum() / wholes.sum()
    deviations = parts - value * wholes
    return float(value), float(np.sqrt((deviations**2).sum()) / wholes.sum())


def table(rows: Sequence[Figures]) -> str:
    """The rows as aligned text."""
    head = f"{'':<46}{'size':>6}{'CER %':>7}{'+-':>5}{'top-1':>7}{'top-20':>7}"
    lines = [f"{head}{'nats':>7}{'+-':>6}{'mass':>7}{'s':>8}"]
    for row in rows:
        nats = f"{'':>13}" if row.nats is None else f"{row.nats:>7.2f}{row.nats_se:>6.2f}"
        mass = f"{'':>7}" if row.found_mass is None else f"{100 * row.found_mass:>7.1f}"
        lines.append(
            f"{row.way:<46}{row.size:>6}{100 * row.error_rate:>7.1f}{100 * row.error_rate_se:>5.1f}"
            f"{100 * row.first:>7.1f}{100 * row.found:>7.1f}{nats}{mass}{row.seconds:>8.3f}"
        )
    return "\n".join(lines)


def difference(mine: Outcomes, other: Outcomes) -> tuple[float, float]:
    """How much larger my error rate is, on the same gaps, and the standard error of that."""
    return ratio(mine.errors - other.errors, mine.chars)
