"""Tiny runs that are trained on threads and on processes, and must not differ by a bit."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from tests.training.helpers import tiny_encoder_decoder_trainer, tiny_trainer
from tests.training.labelled import tiny_labeler_trainer
from training.loop.trainer import Trainer

Make: TypeAlias = Callable[[Path], Trainer[Any]]

DROPOUT = {"dropout_input": 0.2, "dropout_between": 0.2, "dropout_output": 0.2, "num_layers": 2}
LABELER = {**DROPOUT, "dropout_embedding": 0.2}
del LABELER["dropout_input"]
TRAINING: Mapping[str, Any] = {"learning_rate": 0.01, "ema_decay": 0.9, "replicas": 2}
CARRIED = {**TRAINING, "restart_probability": 0.3, "ngram_targets": 0.3}

CASES: Mapping[str, Make] = {
    "a language model with targets of an n-gram": lambda folder: tiny_trainer(
        folder, model={**DROPOUT, "weight_drop": 0.2}, training=CARRIED
    ),
    "a language model on two replicas a process": lambda folder: tiny_trainer(
        folder, model={"cell": "gru"}, training={**TRAINING, "replicas": 4}
    ),
    "an encoder-decoder": lambda folder: tiny_encoder_decoder_trainer(
        folder, training={**TRAINING, "label_smoothing": 0.1}
    ),
    "fewer pairs in a batch than replicas": lambda folder: tiny_encoder_decoder_trainer(
        folder, training={**TRAINING, "batch_size": 3, "replicas": 4}
    ),
    "a batch with nothing for the second process": lambda folder: tiny_encoder_decoder_trainer(
        folder, training={**TRAINING, "batch_size": 1}
    ),
    "a classifier": lambda folder: tiny_labeler_trainer(
        folder, "one", model=LABELER, training=TRAINING
    ),
    "a tagger with a chain": lambda folder: tiny_labeler_trainer(
        folder, "chain", model=LABELER, training=TRAINING
    ),
}
STEPS = 3  # before the checkpoint, and after it


def train(run: Trainer[Any]) -> None:
    """The steps of one half, and a checkpoint."""
    for _ in range(STEPS):
        run.train_step()
    run.save()
