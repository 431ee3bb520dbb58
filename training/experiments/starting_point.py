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
from training.config import AnyConfig, ConfigError, parse_config
from training.experiments.experiment import Known
from training.experiments.kinds import experiment_of
from training.loop import checkpoint
from training.loop.checkpoint import BEST

_OPTION = "training.init_from"


@dataclass(frozen=True, slots=True)
class StartingPoint:
    """A parent's best weights, and what they know."""

    name: str
    sha256: str  # of a bundle's manifest, or of a run's weights
    config: AnyConfig
    weights: Mapping[str, Tensor]
    known: Known

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
        """Copy the weights into a model whose vocabulary and labels may have grown.

        The rows of a new token or label begin as the mean of the known ones, which changes the odds
        of the known ones least (Hewitt 2021, "Initializing new word embeddings for pretrained
        language models"). Buffers are the model's own.
        """
        grown = model.state_dict()
        for name, fresh in model.named_parameters(remove_duplicate=False):
            grown[name] = self._grown(self.weights[name], fresh.shape)
        model.load_state_dict(grown)

    def _grown(self, known: Tensor, shape: torch.Size) -> Tensor:
        """A parameter in its new shape."""
        vocabularies = [len(x) for x in self.known.tokenizers]
        for axis, size in enumerate(shape):
            missing = size - known.shape[axis]
            if missing:
                special = len(SPECIAL_TOKENS) if known.shape[axis] in vocabularies else 0
                ordinary = known.narrow(axis, special, known.shape[axis] - special)
                mean = ordinary.mean(dim=axis, keepdim=True)
                known = torch.cat([known, *[mean] * missing], dim=axis)
        return known


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
    return StartingPoint(config.name, digest, config, weights, experiment_of(config).known(record))


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
    weights, known = experiment_of(config).starting_weights(bundle)
    digest = hashlib.sha256((path / MANIFEST_FILE).read_bytes()).hexdigest()
    return StartingPoint(name, digest, config, weights, known)


def _binding(config: AnyConfig) -> Iterator[tuple[str, Any]]:
    """What a child must have like its parent: the task, how text is read, the architecture."""
    yield "task", config.task
    yield from experiment_of(config).reading()
    for option, value in config.model.model_dump(mode="json").items():
        if not option.startswith(("dropout", "weight_drop")):
            yield f"model.{option}", value
