"""The final table: the model beside its n-gram floors, on the same text."""

import math
from collections.abc import Sequence

import numpy as np

from service.bundle import Measurement
from training import ngram
from training.config import BaselineConfig
from training.corpus import Split
from training.evaluation import Score


def measurement(name: str, kind: str, score: Score) -> Measurement:
    """A score as the manifest writes it."""
    return Measurement.model_validate(
        {
            "name": name,
            "kind": kind,
            "loss": score.loss,
            "bits_per_char": score.bits_per_char,
            "perplexity": score.perplexity,
        }
    )


def measure_baselines(
    train: Split, held_out: Split, vocab_size: int, config: BaselineConfig
) -> list[Measurement]:
    """Unigram and interpolated modified Kneser-Ney of every order up to the config's.

    The n-gram tables stand in memory, so of a training split over `max_train_chars` only the first
    tokens are counted, and the name of the baseline says so.
    """
    ids, starts = train.ids, train.starts
    suffix = ""
    if train.chars > config.max_train_chars:
        ids = ids[: config.max_train_chars]
        starts = np.append(starts[starts < len(ids)], len(ids))
        suffix = f" (first {config.max_train_chars:,} tokens)"
    models = ngram.fit(ids, starts, vocab_size, config.max_order)
    totals = ngram.evaluate(models, held_out.ids, held_out.starts)
    return [
        measurement(
            ("unigram" if order == 1 else f"kneser-ney {order}-gram") + suffix,
            "baseline",
            Score(nats, held_out.tokens, held_out.chars),
        )
        for order, nats in totals.items()
    ]


def table(title: str, measurements: Sequence[Measurement]) -> str:
    """The measurements as lines of text, best last."""
    lines = [title, f"{'':<26}{'nats/token':>12}{'bits/char':>12}{'perplexity':>12}"]
    ordered = sorted(measurements, key=lambda x: -x.loss if math.isfinite(x.loss) else -math.inf)
    lines += [
        f"{x.name:<26}{x.loss:>12.4f}{x.bits_per_char:>12.4f}{x.perplexity:>12.3f}" for x in ordered
    ]
    return "\n".join(lines)
