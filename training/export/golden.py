"""Known answers: written into a bundle, and checked as the service checks them when it loads one.

B batch (always 1), T tokens, V vocabulary.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from service.bundle.encoder_decoder import EncoderDecoderGoldenVector
from service.bundle.labeler import LabelerGoldenVector
from service.bundle.language_model import LanguageModelGoldenVector
from service.bundle.manifest import Precision
from training.errors import ExportError
from training.export.precision import (
    ADVICE,
    MAX_INT8_DIFFERENCE,
    Array,
    Exact,
    exact_of,
    golden_tolerance,
)

Model = TypeVar("Model", bound=nn.Module)
Vector = TypeVar(
    "Vector", LanguageModelGoldenVector, EncoderDecoderGoldenVector, LabelerGoldenVector
)


def known_answer(
    model: Model,
    programs: Sequence[Model],
    precision: Precision,
    targets: list[int],
    *,
    logits: Callable[[Model], Tensor],
    reference: Callable[[Model], Tensor],
    exact: Callable[[Tensor, Sequence[Tensor]], Exact] = exact_of,
) -> tuple[list[float], float]:
    """log p of the `targets` [T], and by how many nats per token a machine may differ from it.

    In fp32 they come from the `logits` [1, T, V] of the model's exact `programs`, in int8 from the
    log-probabilities [1, T, V] of the `reference`. `exact` makes log-probabilities of logits.
    """
    if precision == "int8":
        logprobs, tolerance = reference(model), MAX_INT8_DIFFERENCE
    else:
        with torch.no_grad():
            found = [logits(program) for program in programs]
        known = exact(found[0], found[1:])
        logprobs, tolerance = torch.from_numpy(known.values), golden_tolerance(known)
    picked = logprobs[0, torch.arange(len(targets)), torch.tensor(targets)]
    return [round(x, 8) for x in picked.tolist()], tolerance


def check_vectors(
    vectors: Iterable[Vector],
    precision: Precision,
    answer: Callable[[Vector], Array],
    check_int8: Callable[[Vector, Array], None],
) -> None:
    """Hold a graph's `answer` [T] to the known answers of its precision.

    `check_int8` judges an answer in int8, since rounding can change it. Raises ExportError.
    """
    for vector in vectors:
        if vector.precision != precision:
            continue
        found = answer(vector)
        if precision == "int8":
            check_int8(vector, found)
            continue
        difference = mean_difference(vector, found)
        # Written so that NaN fails too.
        if not difference <= vector.tolerance:
            raise ExportError(
                f"a known answer is missed by {difference:.2e} nats per token; at most "
                f"{vector.tolerance:.2e} is allowed. {ADVICE}"
            )


def mean_difference(vector: Vector, found: Array) -> float:
    """By how many nats per token an answer [T] differs from the known one."""
    return float(np.abs(found - np.array(vector.logprobs)).mean())
