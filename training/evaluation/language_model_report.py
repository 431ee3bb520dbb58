"""The final table: the model beside its n-gram floors, on the same text."""

import math
from collections.abc import Sequence

import numpy as np

from service.bundle.language_model import LanguageModelMeasurement
from training.config import BaselineConfig
from training.data.corpus import Split
from training.evaluation import ngram
from training.evaluation.language_model import Score, score_of
from training.evaluation.uncertainty import units_of


def measurement(name: str, kind: str, score: Score) -> LanguageModelMeasurement:
    """A score as the manifest writes it."""
    return LanguageModelMeasurement.model_validate(
        {
            "name": name,
            "kind": kind,
            "loss": score.loss,
            "bits_per_char": score.bits_per_char,
            "perplexity": score.perplexity,
            "standard_error": score.standard_error,
        }
    )


def measure_baselines(
    train: Split,
    held_out: Split,
    vocab_size: int,
    config: BaselineConfig,
    model: Score | None = None,
) -> list[LanguageModelMeasurement]:
    """Unigram and interpolated modified Kneser-Ney of every order up to the config's.

    The n-gram tables stand in memory, so of a training split over `max_train_chars` only the first
    tokens are counted, and the name of the baseline says so. With the model's score, each has the
    standard error of its difference from that, text by text.
    """
    ids, starts = train.ids, train.starts
    suffix = ""
    if train.chars > config.max_train_chars:
        ids = ids[: config.max_train_chars]
        starts = np.append(starts[starts < len(ids)], len(ids))
        suffix = f" (first {config.max_train_chars:,} tokens)"
    models = ngram.fit(ids, starts, vocab_size, config.max_order)
    units = units_of(held_out)
    found = []
    for order, nats in ngram.evaluate_parts(models, held_out.ids, units.bounds).items():
        name = ("unigram" if order == 1 else f"kneser-ney {order}-gram") + suffix
        floor = measurement(name, "baseline", score_of(float(nats.sum()), held_out, units, nats))
        if model is not None and model.unit_nats is not None:
            error = units.standard_error(nats - model.unit_nats)
            floor = floor.model_copy(update={"difference_error": error})
        found.append(floor)
    return found


def table(title: str, measurements: Sequence[LanguageModelMeasurement]) -> str:
    """The measurements as lines of text, best last, and how far apart model and best floor are."""
    header = f"{'':<26}{'nats/token':>12}{'bits/char':>12}{'perplexity':>12}"
    sure = any(x.standard_error is not None for x in measurements)
    lines = [title, header + "  ± bits/char" * sure]
    ordered = sorted(measurements, key=lambda x: -x.loss if math.isfinite(x.loss) else -math.inf)
    for x in ordered:
        line = f"{x.name:<26}{x.loss:>12.4f}{x.bits_per_char:>12.4f}{x.perplexity:>12.3f}"
        lines.append(line + ("" if x.standard_error is None else f"{x.standard_error:>13.4f}"))
    return "\n".join(lines + _compared(ordered))


def _compared(ordered: Sequence[LanguageModelMeasurement]) -> list[str]:
    floors = [x for x in ordered if x.kind == "baseline"]
    models = [x for x in ordered if x.kind == "model"]
    if not floors or not models or floors[-1].difference_error is None:
        return []
    gain = floors[-1].bits_per_char - models[-1].bits_per_char
    word = "better" if gain >= 0 else "worse"
    said = f"{models[-1].name}: {word} than the {floors[-1].name} by {abs(gain):.4f} ± "
    return [said + f"{floors[-1].difference_error:.4f} bits a character (± is a standard error)"]
