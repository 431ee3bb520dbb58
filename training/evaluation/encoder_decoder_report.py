"""The final figures, as tables and in words: an encoder-decoder beside its floors."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from service.bundle.encoder_decoder import EncoderDecoderMeasurement, EncoderDecoderMetrics
from training.config import EncoderDecoderConfig
from training.data.pairs import PairCorpus, PairSplit
from training.evaluation.encoder_decoder import (
    length_limits,
    mean_loss,
    metric_options,
    translation_metrics,
)
from training.evaluation.metrics import measure, share_error
from training.networks.encoder_decoder import EncoderDecoder

_GRAM = 3
_FLOORS = {
    "copy": "copying the source",
    "nearest source": "the answer of the most similar source",
}


def measure_splits(
    config: EncoderDecoderConfig,
    model: EncoderDecoder,
    corpus: PairCorpus,
    splits: Sequence[PairSplit],
    device: torch.device,
) -> list[EncoderDecoderMetrics]:
    """The model, greedy and with its beam, and the baselines, on each of the splits."""
    nearest = NearestSource(corpus.train)
    return [
        split_metrics(
            split,
            [
                *_models(config, model, corpus, split, device),
                *baselines(config, split, nearest),
            ],
        )
        for split in splits
    ]


def measure_baselines(
    config: EncoderDecoderConfig, corpus: PairCorpus
) -> list[EncoderDecoderMetrics]:
    """The baselines alone, on every held-out set."""
    nearest = NearestSource(corpus.train)
    return [split_metrics(split, baselines(config, split, nearest)) for split in corpus.held_out]


def split_metrics(
    split: PairSplit, measurements: list[EncoderDecoderMeasurement]
) -> EncoderDecoderMetrics:
    """What was measured on a split."""
    return EncoderDecoderMetrics(
        split=split.name,
        pairs=len(split),
        sources=len(split.references),
        measurements=measurements,
    )


def _models(
    config: EncoderDecoderConfig,
    model: EncoderDecoder,
    corpus: PairCorpus,
    split: PairSplit,
    device: torch.device,
) -> list[EncoderDecoderMeasurement]:
    loss = mean_loss(model, split, device)
    limits = length_limits(corpus.train, config.data.max_source_tokens)
    found = []
    for beam_size in dict.fromkeys((1, config.training.beam_size)):
        metrics = translation_metrics(
            config, model, corpus, split, limits, beam_size=beam_size, device=device
        )
        found.append(
            EncoderDecoderMeasurement(
                name="greedy" if beam_size == 1 else f"beam {beam_size}",
                kind="model",
                values={"loss": loss, **metrics},
            )
        )
    return found


def baselines(
    config: EncoderDecoderConfig, split: PairSplit, nearest: "NearestSource"
) -> list[EncoderDecoderMeasurement]:
    """The floors: the source itself, and the target of the nearest training source."""
    sources = list(split.references)
    wanted = [split.references[source] for source in sources]
    options = metric_options(config)
    floors = {"copy": sources, "nearest source": [nearest.target(x) for x in sources]}
    return [
        EncoderDecoderMeasurement(
            name=name, kind="baseline", values=dict(measure(found, wanted, **options))
        )
        for name, found in floors.items()
    ]


class NearestSource:
    """The target of the training source that shares the most character trigrams.

    By the Jaccard index of the sets of trigrams, with the text's ends; the first of equals.
    """

    def __init__(self, train: PairSplit) -> None:
        self._sources = list(train.references)
        self._targets = [targets[0] for targets in train.references.values()]
        postings: dict[str, list[int]] = {}
        self._sizes = np.zeros(len(self._sources), np.int64)
        for i, source in enumerate(self._sources):
            grams = _grams(source)
            self._sizes[i] = len(grams)
            for gram in grams:
                postings.setdefault(gram, []).append(i)
        self._postings = {gram: np.array(places) for gram, places in postings.items()}

    def target(self, source: str) -> str:
        """The target of the nearest source."""
        grams = _grams(source)
        found = [self._postings[gram] for gram in grams if gram in self._postings]
        empty: npt.NDArray[np.int64] = np.empty(0, np.int64)
        places = np.concatenate([empty, *found])
        shared = np.bincount(places, minlength=len(self._sources))
        nearness = shared / (self._sizes + len(grams) - shared)
        return self._targets[int(nearness.argmax())]


def _grams(text: str) -> set[str]:
    padded = f"\n{text}\n"
    return {padded[i : i + _GRAM] for i in range(max(1, len(padded) - _GRAM + 1))}


def table(metrics: Sequence[EncoderDecoderMetrics]) -> str:
    """The measurements as lines of text, one part for each held-out set."""
    lines = []
    for found in metrics:
        names = list(dict.fromkeys(name for x in found.measurements for name in x.values))
        lines += [
            f"{found.split}: {found.sources:,} sources, {found.pairs:,} pairs",
            " " * 18 + "".join(f"{name:>19}" for name in names),
        ]
        for x in found.measurements:
            cells = [f"{x.values[n]:>19.4f}" if n in x.values else " " * 19 for n in names]
            lines.append(f"{x.name:<18}{''.join(cells)}")
        models = _translated(found)
        if models:
            exact = models[-1].values["exact_match"]
            error = share_error(exact, found.sources)
            lines.append(
                f"{models[-1].name}: exact_match {exact:.4f} ± {error:.4f} (± is a standard error; "
                "word_error_rate has the same)"
            )
    return "\n".join(lines)


def in_words(metrics: Sequence[EncoderDecoderMetrics]) -> list[str]:
    """How often the model is right on each held-out set, beside the floors."""
    lines = []
    for found in metrics:
        mine = _translated(found)[-1]
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


def _translated(found: EncoderDecoderMetrics) -> list[EncoderDecoderMeasurement]:
    """The measurements of the model's translations, greedy first."""
    return [x for x in found.measurements if x.kind == "model" and "exact_match" in x.values]
