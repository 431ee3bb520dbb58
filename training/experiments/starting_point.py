"""Weights to begin with: those of a run, or of a bundle."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from service.bundle.store import MANIFEST_FILE, read_bundle
from service.bundle.text import SPECIAL_TOKENS
from service.bundle.tokenization import Tokenizer
from training.config import AnyConfig, ConfigError, parse_config
from training.experiments.kinds import experiment_of
from training.loop import checkpoint
from training.loop.checkpoint import BEST

_OPTION = "training.init_from"


@dataclass(frozen=True, slots=True)
class StartingPoint:
    """A parent's best weights, and the vocabularies that they are for."""

    name: str
    sha256: str  # of a bundle's manifest, or of a run's weights
    config: AnyConfig
    weights: Mapping[str, Tensor]
    tokenizers: tuple[Tokenizer, ...]  # a language model's, or source and target

    @property
    def record(self) -> dict[str, str]:
        """What the manifest says of the parent."""
        return {"name": self.name, "sha256": self.sha256}

    def check(self, config: AnyConfig) -> None:
        """Raise ConfigError for the first option that must be the parent's and is not."""
        mine, other = dict(_binding(config)), dict(_binding(self.config))
        for option in {**mine, **other}:
            if mine.get(option) != other.get(option):
                raise ConfigError(
                    f"{_OPTION}: {option} is {other.get(option)} in {self.name} and "
                    f"{mine.get(option)} here; to start from it they must be the same"
                )

    def load_into(self, model: nn.Module) -> None:
        """Copy the weights into a model whose vocabulary may have grown.

        A new token's rows begin as the mean of the known ones, which changes the known tokens'
        odds least (Hewitt 2021, "Initializing new word embeddings for pretrained language models").
        """
        grown = {}
        for name, fresh in model.state_dict().items():
            known = self.weights[name]
            missing = len(fresh) - len(known)
            if missing:
                mean = known[len(SPECIAL_TOKENS) :].mean(dim=0, keepdim=True)
                known = torch.cat([known, mean.expand(missing, *known.shape[1:])])
            grown[name] = known
        model.load_state_dict(grown)


def open_starting_point(path: Path) -> StartingPoint:
    """Open a run's folder or a bundle's.

    Raises ConfigError, CheckpointError and BundleError.
    """
    if (path / BEST).exists():
        return _of_run(path)
    if (path / MANIFEST_FILE).exists():
        return _of_bundle(path)
    raise ConfigError(f"{_OPTION}: {path}: neither the folder of a run with weights nor a bundle")


def _of_run(path: Path) -> StartingPoint:
    weights, record = checkpoint.read(path / BEST)
    config = parse_config(record["config"])
    with (path / BEST).open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    tokenizers = experiment_of(config).tokenizers(record)
    return StartingPoint(config.name, digest, config, weights, tokenizers)


def _of_bundle(path: Path) -> StartingPoint:
    bundle = read_bundle(path)
    name = bundle.manifest.name
    try:
        config = parse_config(bundle.manifest.training.config)
    except ValidationError as error:
        raise ConfigError(
            f"{_OPTION}: {name}: its training configuration is another version's; start from its "
            "run's folder instead"
        ) from error
    weights, tokenizers = experiment_of(config).starting_weights(bundle)
    digest = hashlib.sha256((path / MANIFEST_FILE).read_bytes()).hexdigest()
    return StartingPoint(name, digest, config, weights, tokenizers)


def _binding(config: AnyConfig) -> Iterator[tuple[str, Any]]:
    """What a child must have like its parent: the task, how text is read, the architecture."""
    yield "task", config.task
    yield from experiment_of(config).reading()
    for option, value in config.model.model_dump(mode="json").items():
        if not option.startswith(("dropout", "weight_drop")):
            yield f"model.{option}", value
