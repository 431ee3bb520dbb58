"""Training an n-gram: count, prune and keep it, without steps and without random numbers.

G distinct n-grams of a level, H histories, V vocabulary.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from training.config import NGramConfig, NGramLanguageModelConfig
from training.data.corpus import Corpus, Split
from training.evaluation import ngram
from training.evaluation.language_model import score_of
from training.evaluation.ngram import Level, NGramModel, Weights
from training.evaluation.ngram_pruning import prune
from training.evaluation.uncertainty import units_of
from training.loop import checkpoint
from training.loop.task import TrainingError


def fit_ngram(options: NGramConfig, train: Split, vocab_size: int) -> NGramModel:
    """The n-gram model of a split, pruned. The same options and text give the same model."""
    model = ngram.fit(train.ids, train.starts, vocab_size, options.order)[-1]
    return prune(model, threshold=options.prune, at_most=options.max_ngrams)


def train_ngram(config: NGramLanguageModelConfig, corpus: Corpus, run_dir: Path) -> Sequence[str]:
    """Count, prune, and keep the model as the run's best weights. Returns lines for people.

    Raises TrainingError where there is no text to count or none to validate on.
    """
    if corpus.train.chars == 0 or corpus.valid.chars == 0:
        raise TrainingError("the corpus leaves no text to train on or none to validate on")
    started = time.monotonic()
    model = fit_ngram(config.model, corpus.train, len(corpus.vocab))
    units = units_of(corpus.valid)
    nats = ngram.evaluate_parts([model], corpus.valid.ids, units.bounds)[model.order]
    score = score_of(float(nats.sum()), corpus.valid, units, nats)
    record = {
        "step": 0,
        "parameters": model.ngrams,
        "loss": score.loss,
        "bits_per_char": score.bits_per_char,
        "perplexity": score.perplexity,
        "config": config.model_dump(mode="json"),
        "parent": None,
        "vocab": list(corpus.vocab.tokens),
        "corpus_sha256": corpus.sha256,
    }
    checkpoint.save(run_dir / checkpoint.BEST, _tensors(model), record)
    seconds = time.monotonic() - started
    counted = f"{model.ngrams:,} n-grams of 2 to {model.order} tokens in {seconds:.1f} s"
    figures = f"loss {score.loss:.4f}, {score.bits_per_char:.4f} bits/char"
    return [counted, f"valid: {figures}, perplexity {score.perplexity:.3f}"]


def _tensors(model: NGramModel) -> dict[str, Tensor]:
    """The model's tables, by names that `model_of` knows."""
    tables: dict[str, npt.NDArray[Any]] = {
        "unigram": model.unigram,
        "continuation": model.continuation,
    }
    for order, (level, weights) in enumerate(zip(model.levels, model.weights, strict=True), 2):
        tables |= {f"{order}.keys": level.keys[:-1], f"{order}.gamma": weights.gamma}
        tables[f"{order}.mass"] = weights.mass[:-1]
    return {name: torch.from_numpy(table) for name, table in tables.items()}


def model_of(config: NGramConfig, tensors: Mapping[str, Tensor]) -> NGramModel:
    """The model of a run's weights, to the bit."""
    tables = {name: x.numpy() for name, x in tensors.items()}
    levels = []
    for order in range(2, config.order + 1):
        weights = Weights(np.append(tables[f"{order}.mass"], 0.0), tables[f"{order}.gamma"])
        keys = np.append(tables[f"{order}.keys"], np.iinfo(np.int64).max)
        levels.append(Level(keys, weights, weights))
    return NGramModel(config.order, tables["unigram"], tables["continuation"], tuple(levels))
