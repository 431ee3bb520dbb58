"""How often blanks are filled as in the text, beside two floors that see less of it."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from service.bundle.encoder_decoder import (
    EncoderDecoderMeasurement,
    EncoderDecoderMetrics,
    MetricName,
)
from service.bundle.infill import Infill
from service.bundle.text import BOS_ID, EOS_ID, SPECIAL_TOKENS
from training.config import EncoderDecoderConfig
from training.data.infill import InfillCorpus
from training.data.pairs import PairSplit
from training.evaluation import encoder_decoder_report, ngram
from training.evaluation.encoder_decoder import length_limits, mean_loss, translate_texts
from training.evaluation.metrics import measure, share_error
from training.evaluation.ngram import NGramModel
from training.networks.encoder_decoder import EncoderDecoder

_ORDER = 6  # tokens of the floor's n-grams
_MOST_COUNTED = 20_000_000  # tokens that they are counted in: their tables are held in memory


class Floors:
    """Two baselines that do not see both sides. Both are given the length of each blank."""

    def __init__(self, corpus: InfillCorpus, infill: Infill) -> None:
        self.corpus = corpus
        self._infill = infill
        self._frequent = _frequent(corpus.pairs.train, infill)
        train = corpus.text.train.first(_MOST_COUNTED)
        *_, self._ngram = ngram.fit(train.ids, train.starts, len(corpus.text.vocab), _ORDER)

    def measured(self, split: PairSplit) -> list[EncoderDecoderMeasurement]:
        """Both floors on a split."""
        wanted = [target for _, target in split.pairs]
        targets = {
            "frequent": (self._likeliest(target) for target in wanted),
            f"{_ORDER}-gram": (self._written(*pair) for pair in split.pairs),
        }
        return [
            EncoderDecoderMeasurement(
                name=name, kind="baseline", values=dict(_measured(list(found), wanted))
            )
            for name, found in targets.items()
        ]

    def _likeliest(self, target: str) -> str:
        """The most frequent text of each blank's length."""
        texts = self._infill.texts(target)
        return self._infill.target([self._frequent.get(len(text), "") for text in texts])

    def _written(self, source: str, target: str) -> str:
        """For each blank, the text of its length that an n-gram writes greedily from the left."""
        infill, vocab = self._infill, self.corpus.text.vocab
        after, _, before = source.partition(infill.seam)
        _, *between = after.split(infill.blank)
        ids, written = [], []
        for piece, text in zip((before, *between), infill.texts(target), strict=False):
            begins = piece.startswith(infill.edge)
            ids += [BOS_ID] * begins + vocab.encode(piece.lstrip(infill.edge)).tolist()
            fill = list(_greedy(self._ngram, ids, len(text)))
            ids += fill
            written.append(vocab.decode(fill))
        return infill.target(written)


def _frequent(train: PairSplit, infill: Infill) -> dict[int, str]:
    """The most frequent text of a blank, by its length."""
    counts: dict[int, Counter[str]] = defaultdict(Counter)
    for _, target in train.pairs:
        for text in infill.texts(target):
            counts[len(text)][text] += 1
    return {length: found.most_common(1)[0][0] for length, found in counts.items()}


def _greedy(model: NGramModel, ids: Sequence[int], length: int) -> Iterator[int]:
    """The likeliest characters after ids, one by one."""
    history = list(ids[1 - model.order :])
    for _ in range(length):
        # The last position predicts the next token; the token there does not matter.
        probs = model.distributions(np.array([*history, EOS_ID]))[-1]
        probs[: len(SPECIAL_TOKENS)] = 0.0
        history = [*history, int(probs.argmax())][1 - model.order :]
        yield history[-1]


def _measured(found: Sequence[str], wanted: Sequence[str]) -> dict[MetricName, float]:
    return measure(found, [[x] for x in wanted], split=list, corpus_metrics=False)


def measure_splits(
    config: EncoderDecoderConfig,
    model: EncoderDecoder,
    floors: Floors,
    splits: Sequence[PairSplit],
    device: torch.device,
) -> list[EncoderDecoderMetrics]:
    """The model, greedy and with its beam, and the floors, on each of the splits."""
    return [
        encoder_decoder_report.split_metrics(
            split,
            [*_models(config, model, floors.corpus, split, device), *floors.measured(split)],
        )
        for split in splits
    ]


def measure_floors(floors: Floors) -> list[EncoderDecoderMetrics]:
    """The floors alone, on every held-out set."""
    return [
        encoder_decoder_report.split_metrics(split, floors.measured(split))
        for split in floors.corpus.pairs.held_out
    ]


def _models(
    config: EncoderDecoderConfig,
    model: EncoderDecoder,
    corpus: InfillCorpus,
    split: PairSplit,
    device: torch.device,
) -> list[EncoderDecoderMeasurement]:
    loss = mean_loss(model, split, device)
    limits = length_limits(corpus.pairs.train, config.data.max_source_tokens)
    sources = [source for source, _ in split.pairs]
    found = []
    for beam_size in dict.fromkeys((1, config.training.beam_size)):
        texts = translate_texts(
            model,
            corpus.pairs,
            sources,
            limits,
            beam_size=beam_size,
            device=device,
            length_penalty=0.0,  # the likeliest text, as the service ranks them
        )
        values = {"loss": loss, **_measured(texts, [target for _, target in split.pairs])}
        name = "greedy" if beam_size == 1 else f"beam {beam_size}"
        found.append(EncoderDecoderMeasurement(name=name, kind="model", values=values))
    return found


def table(metrics: Sequence[EncoderDecoderMetrics]) -> str:
    """As any encoder-decoder's, and in words how the model compares with the n-gram."""
    return "\n".join([encoder_decoder_report.table(metrics), *_compared(metrics)])


def _compared(metrics: Sequence[EncoderDecoderMetrics]) -> list[str]:
    """One line for each held-out set where the model was measured.

    The error is that of a difference of two shares, as if they were of different texts: the true
    one is smaller, since an easy text is easy for both.
    """
    lines = []
    for found in metrics:
        # Of each kind the last one: the model with its beam, and the n-gram.
        measured = [x for x in found.measurements if "exact_match" in x.values]
        shares = {x.kind: x.values["exact_match"] for x in measured}
        if "model" not in shares:
            continue
        gain = shares["model"] - shares["baseline"]
        error = math.hypot(*(share_error(x, found.pairs) for x in shares.values()))
        verdict = (
            "a difference that may be chance"
            if abs(gain) < 2 * error
            else "the model is better"
            if gain > 0
            else "the model is worse; more text or more steps would help"
        )
        lines.append(
            f"{found.split}: the model fills {100 * shares['model']:.1f} % exactly, a "
            f"{_ORDER}-gram that is told how long each blank is {100 * shares['baseline']:.1f} % "
            f"(± {100 * error:.1f} for the difference): {verdict}"
        )
    return lines


def in_words(metrics: Sequence[EncoderDecoderMetrics]) -> list[str]:
    """How often the blanks are filled exactly, beside the floors."""
    lines = []
    for found in metrics:
        mine = [x for x in found.measurements if x.kind == "model" and "exact_match" in x.values]
        share = 100 * mine[-1].values["exact_match"]
        lines.append(
            f"Of {found.pairs:,} texts that it has never seen ({found.split}), it fills the blanks "
            f"of {share:.1f} % exactly as they were."
        )
        lines += [
            f"By {_FLOORS.get(x.name, f'a {x.name} from the left')}, told how long each blank is: "
            f"{100 * x.values['exact_match']:.1f} %."
            for x in found.measurements
            if x.kind == "baseline"
        ]
    return [*lines, *_compared(metrics)]


_FLOORS = {"frequent": "the most frequent text"}
