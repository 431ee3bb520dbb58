"""The gate for int8: whether its graphs are in a bundle, and which precision is served."""

import logging
from collections.abc import Callable, Mapping
from typing import TypeVar

from service.bundle.manifest import Precision
from training.errors import Unverifiable

MAX_QUANTIZATION_LOSS = 0.002  # bits by which int8 may be worse, a character or target token
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")

Measure = TypeVar("Measure")
_LOG = logging.getLogger(__name__)


def measured(
    fp32: Measure, check_int8: Callable[[], None], int8: Callable[[], Measure]
) -> dict[Precision, Measure]:
    """What the graphs of each precision measure on held-out data.

    int8 is left out if nobody can say whether its graphs are right; the log says so.
    """
    try:
        check_int8()
    except Unverifiable as why:
        _LOG.warning("the bundle has no int8 graphs: %s", why)
        return {"fp32": fp32}
    return {"fp32": fp32, "int8": int8()}


def served_precision(bits: Mapping[Precision, float]) -> Precision:
    """The precision that a bundle is served in by default.

    `bits` are per character, or per target token, on held-out data.
    """
    # Written so that NaN means fp32.
    if "int8" in bits and bits["int8"] - bits["fp32"] <= MAX_QUANTIZATION_LOSS:
        return "int8"
    return "fp32"


def is_kept(precision: Precision, served: Precision) -> bool:
    """Whether a bundle holds a precision's graphs and known answers; it always holds fp32."""
    return precision in {"fp32", served}
