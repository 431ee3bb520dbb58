"""The golden check: a bundle's graphs must give its known answers (golden vectors) here, too."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import numpy as np

from service.bundle.arrays import Float32Array
from service.bundle.files import BundleError
from service.bundle.manifest import Precision
from service.runtime.graphs import first_line


class GoldenMismatch(BundleError):
    """The graphs run, but not to the numbers that the bundle knows."""


class GoldenVector(Protocol):
    """What the golden vectors of every kind of model have."""

    @property
    def precision(self) -> Precision:
        """Of the graphs that it belongs to."""

    @property
    def logprobs(self) -> Sequence[float]:
        """The answer, [T] nats."""

    @property
    def tolerance(self) -> float:
        """Largest mean absolute difference, in nats per token."""


Vector = TypeVar("Vector", bound=GoldenVector)


def check_golden(
    name: str,
    precision: Precision,
    vectors: Sequence[Vector],
    check: Callable[[str, Vector], None],
) -> None:
    """Call `check` with the name and the contents of every vector in this precision.

    Raises GoldenMismatch where `check` does, and BundleError where the graphs fail.
    """
    try:
        for index, vector in enumerate(vectors):
            if vector.precision == precision:
                check(f"{name}: golden vector {index}", vector)
    except BundleError:
        raise
    except Exception as error:  # onnxruntime's errors have no common base
        cause = f"its golden vectors cannot be run: {first_line(error)}"
        raise BundleError(f"{name}: {cause}") from error


def check_answer(where: str, vector: GoldenVector, logprobs: Float32Array) -> None:
    """Raise GoldenMismatch where this machine's `logprobs` [T] are too far from the vector's."""
    difference = float(np.abs(logprobs - np.array(vector.logprobs)).mean())
    # Written so that NaN fails too.
    if not difference <= vector.tolerance:
        raise GoldenMismatch(
            f"{where}: this machine differs by {difference:.2e} nats per token in "
            f"{vector.precision}, at most {vector.tolerance} is allowed"
        )
