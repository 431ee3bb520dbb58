"""Figures in words that a person understands, and the request that uses the model."""

import json
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from service.bundle.encoder_decoder import EncoderDecoderManifest, EncoderDecoderMeasurement
from service.bundle.language_model import LanguageModelManifest, LanguageModelMeasurement
from training.evaluation.metrics import share_error

_FLOORS = {
    "copy": "copying the source",
    "nearest source": "the answer of the most similar source",
}


def seconds(value: float) -> str:
    """A duration: `40 seconds`, `12 minutes`."""
    if value < 90:
        return f"{max(2, round(value))} seconds"
    return f"{round(value / 60)} minutes"


def language_model_figures(manifest: LanguageModelManifest, unit: str) -> list[str]:
    """The held-out figure beside guessing and the best n-gram."""
    metrics = manifest.metrics
    mine = next(
        x for x in metrics.measurements if x.kind == "model" and x.name == manifest.precision
    ).bits_per_char
    even = math.log2(manifest.vocab.size - 2) * metrics.tokens / metrics.chars
    said = f"On {unit} that it has never seen ({metrics.chars:,} characters), the model needs "
    figures = f"{mine:.2f} bits a character; guessing evenly needs {even:.2f}."
    floors = [x for x in metrics.measurements if x.kind == "baseline"]
    return [said + figures, compared(mine, min(floors, key=lambda x: x.bits_per_char))]


def compared(mine: float, floor: LanguageModelMeasurement) -> str:
    """The model's bits a character beside the best n-gram's, whichever is better."""
    said = f"The best n-gram ({floor.name}) needs {floor.bits_per_char:.2f}"
    gain = floor.bits_per_char - mine
    percent = _percent(abs(gain) / floor.bits_per_char)
    if floor.difference_error is None:
        return f"{said}: a difference of {percent} %; there is too little text to rule out chance."
    error = _percent(floor.difference_error / floor.bits_per_char)
    if abs(gain) < 2 * floor.difference_error:
        return f"{said}: a difference of {percent} % (± {error}), which may be chance."
    if gain > 0:
        return f"{said}: the model is {percent} % better (± {error})."
    return (
        f"{said}, which is {percent} % better than the model (± {error}). "
        "More data, or more --minutes where the model was still getting better, would help."
    )


def _percent(share: float) -> str:
    """To a tenth where it is small."""
    return f"{100 * share:.0f}" if share >= 0.1 else f"{100 * share:.1f}"


def pair_figures(manifest: EncoderDecoderManifest) -> list[str]:
    """How often the model is right on each held-out set, beside what costs nothing."""
    lines = []
    for found in manifest.metrics:
        mine = [x for x in found.measurements if x.kind == "model" and "exact_match" in x.values][
            -1
        ]
        exact = mine.values["exact_match"]
        error = share_error(exact, found.sources)
        lines.append(
            f"Of {found.sources:,} sources that it has never seen ({found.split}), it gets "
            f"{100 * exact:.1f} % exactly right (± {100 * error:.1f}), and "
            f"{100 * mine.values['symbol_error_rate']:.1f} % of the symbols wrong."
        )
        floors = [x for x in found.measurements if x.kind == "baseline"]
        lines += [_floor(x) for x in floors]
    return lines


def _floor(floor: EncoderDecoderMeasurement) -> str:
    name = _FLOORS.get(floor.name, floor.name)
    return f"By {name}: {100 * floor.values['exact_match']:.1f} % exactly right."


def curl(path: str, body: Mapping[str, Any]) -> str:
    """A request as a line for a POSIX shell, to where a server here listens without flags."""
    port = os.environ.get("UNROLL_PORT", "")
    url = f"http://127.0.0.1:{port if port.isdecimal() else 8000}"
    words = ["curl", "-s", url + path, "-H", "Content-Type: application/json"]
    return shlex.join([*words, "-d", json.dumps(body, ensure_ascii=False)])


def listing(title: str, lines: Sequence[str]) -> str:
    """A title and lines below it."""
    return "\n".join([title, *(f"  {line}" for line in lines)])
