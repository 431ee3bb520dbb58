"""The final figures, as a table and in words: the model beside its n-gram floors, on one text."""

import math
from collections.abc import Sequence

import numpy as np

from service.bundle.language_model import LanguageModelManifest, LanguageModelMeasurement
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

    The n-gram tables are held in memory, so only the first `max_train_chars` tokens of a larger
    training split are counted, and the baseline's name says so. With the model's score, each
    baseline has the standard error of its difference from the model, text by text.
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
    """The measurements as lines of text, best last, and how the model and the best floor differ."""
    names = {id(x): x.name + " (adapting)" * (x.kind == "adapting") for x in measurements}
    width = max(26, *(len(name) + 2 for name in names.values()))
    header = f"{'':<{width}}{'nats/token':>12}{'bits/char':>12}{'perplexity':>12}"
    sure = any(x.standard_error is not None for x in measurements)
    lines = [title, header + "  ± bits/char" * sure]
    ordered = sorted(measurements, key=lambda x: -x.loss if math.isfinite(x.loss) else -math.inf)
    for x in ordered:
        line = (
            f"{names[id(x)]:<{width}}{x.loss:>12.4f}{x.bits_per_char:>12.4f}{x.perplexity:>12.3f}"
        )
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


def in_words(manifest: LanguageModelManifest, unit: str) -> list[str]:
    """The held-out figure beside guessing and the best n-gram."""
    metrics = manifest.metrics
    mine = next(
        x for x in metrics.measurements if x.kind == "model" and x.name == manifest.precision
    ).bits_per_char
    even = math.log2(manifest.vocab.size - 2) * metrics.tokens / metrics.chars
    said = f"On {unit} that it has never seen ({metrics.chars:,} characters), the model needs "
    figures = f"{mine:.2f} bits a character; guessing evenly needs {even:.2f}."
    floors = [x for x in metrics.measurements if x.kind == "baseline"]
    nearest = compared(mine, min(floors, key=lambda x: x.bits_per_char))
    parts, adapting = _parts_in_words(manifest), _adapting_in_words(manifest)
    return [said + figures, *parts, *adapting, nearest, *_guesses_in_words(manifest)]


def _guesses_in_words(manifest: LanguageModelManifest) -> list[str]:
    """How soon a typical text would be found by trying the likeliest first."""
    curve = manifest.guesses
    if curve is None:
        return []
    said = "Tried from the likeliest line down, the typical held-out one takes"
    if curve.typical is None:
        return [f"{said} more than {_about(curve.guesses[-1])} guesses."]
    return [f"{said} about {_about(curve.typical)} guesses."]


def _about(count: float) -> str:
    """A number to two digits: 40,000, or 3e+12."""
    rounded = float(f"{count:.2g}")
    return f"{rounded:,.0f}" if rounded < 1e9 else f"{rounded:.2g}"


def _adapting_in_words(manifest: LanguageModelManifest) -> list[str]:
    """What a model that can adapt needs while it does."""
    said = "Where a request asks it to adapt to the text that it reads, it needs"
    return [
        f"{said} {x.bits_per_char:.2f}."
        for x in manifest.metrics.measurements
        if x.kind == "adapting" and x.name == manifest.precision
    ]


def _parts_in_words(manifest: LanguageModelManifest) -> list[str]:
    """A mixture's parts, each with its own figure."""
    measured = manifest.metrics.measurements
    alone = {x.name: x.bits_per_char for x in measured if x.kind == "part"}
    found = [
        f"the {f'{part.model.order}-gram' if part.model.order else part.name.upper()} "
        f"({alone[part.name]:.2f} alone)"
        for part in manifest.parts
        if part.name in alone
    ]
    return [f"It is a mixture of {' and '.join(found)}."] if len(found) > 1 else []


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
