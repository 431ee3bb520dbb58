"""How good an encoder-decoder is on a split: nats a token, and metrics of its translations."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from service.bundle.encoder_decoder import EncoderDecoderLimits, MetricName
from service.bundle.text import PAD_ID
from training.config import EncoderDecoderConfig
from training.data.pair_batches import pair_batch
from training.data.pairs import PairCorpus, PairSplit
from training.evaluation.beam_search import translate
from training.evaluation.metrics import measure
from training.networks.encoder_decoder import EncoderDecoder

# The margin: a target may have so many tokens more than those of the training split.
_EXTRA_TOKENS = 10
_MAX_RATIO = 3
_BATCH_TOKENS = 8192  # target positions of one batch: bounds the logits in memory


def length_limits(split: PairSplit, max_source_tokens: int) -> EncoderDecoderLimits:
    """The smallest length bound that fits every pair of a split, with a margin.

    A target may have ratio · source + extra tokens. Of the bounds that fit, this is the smallest
    for a source of mean length, since a search goes on until nothing under the bound can win. The
    ratio is at least that of the mean lengths, so that the bound fits longer sources as well.
    """
    sources = np.array([len(x) + 1 for x in split.sources])
    targets = np.array([len(y) + 1 for y in split.targets])
    least = math.ceil(20 * targets.mean() / sources.mean())
    ratios = np.arange(least, max(least, 20 * _MAX_RATIO) + 1) / 20
    over = [(targets - np.floor(ratio * sources)).max() for ratio in ratios]
    extras = np.maximum(over, 0) + _EXTRA_TOKENS
    best = int(np.argmin(ratios * sources.mean() + extras))
    return EncoderDecoderLimits(
        max_source_tokens=max_source_tokens,
        max_tokens_ratio=float(ratios[best]),
        max_tokens_extra=int(extras[best]),
    )


@torch.no_grad()
def mean_loss(model: EncoderDecoder, split: PairSplit, device: torch.device) -> float:
    """Mean nats a target token over a split, eos counted."""
    was_training = model.training
    model.eval()
    order = sorted(range(len(split)), key=lambda i: (len(split.sources[i]), len(split.targets[i])))
    nats, predicted, start = 0.0, 0, 0
    while start < len(order):
        longest = max(len(split.targets[i]) for i in order[start : start + 64]) + 1
        size = max(1, _BATCH_TOKENS // longest)
        batch = pair_batch(split, order[start : start + size])
        parts = (batch.sources, batch.lengths, batch.tokens)
        logits = model(*(torch.from_numpy(x).to(device) for x in parts))
        targets = torch.from_numpy(batch.targets).to(device)
        losses = functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=PAD_ID, reduction="none"
        )
        nats += float(losses.double().sum())
        predicted += batch.predicted
        start += size
    model.train(was_training)
    return nats / predicted


def translate_texts(
    model: EncoderDecoder,
    corpus: PairCorpus,
    texts: Sequence[str],
    limits: EncoderDecoderLimits,
    *,
    beam_size: int,
    device: torch.device,
    length_penalty: float = 1.0,
) -> list[str]:
    """The best target of each normalized source text."""
    sources = [corpus.source.encode(text) for text in texts]
    hypotheses = translate(
        model,
        sources,
        beam_size=beam_size,
        length_penalty=length_penalty,
        max_tokens=[limits.max_tokens(len(source) + 1) for source in sources],
        device=device,
    )
    return [corpus.target.decode(found[0].tokens) for found in hypotheses]


def translation_metrics(
    config: EncoderDecoderConfig,
    model: EncoderDecoder,
    corpus: PairCorpus,
    split: PairSplit,
    limits: EncoderDecoderLimits,
    *,
    beam_size: int,
    at_most: int | None = None,
    device: torch.device,
) -> dict[MetricName, float]:
    """The metrics of the translations of a split's sources, or of the first `at_most` of them."""
    texts = list(split.references)[:at_most]
    wanted = [split.references[text] for text in texts]
    found = translate_texts(model, corpus, texts, limits, beam_size=beam_size, device=device)
    return measure(found, wanted, **metric_options(config))


def metric_options(config: EncoderDecoderConfig) -> dict[str, Any]:
    """How `measure` reads the target side: symbols between spaces, or characters."""
    symbols = config.data.target.tokenization == "whitespace"
    return {"split": str.split if symbols else list, "corpus_metrics": not symbols}
