"""Weights to begin with: those of a run, or of a language model's bundle.

V vocabulary of the parent, H hidden, G gates of the cell.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from pydantic import ValidationError
from torch import Tensor, nn

from service.bundle.encoder_decoder import EncoderDecoderBundle
from service.bundle.language_model import LanguageModelBundle
from service.bundle.store import MANIFEST_FILE, read_bundle
from service.bundle.text import SPECIAL_TOKENS
from service.bundle.tokenization import Characters, Tokenizer
from training.config import (
    ConfigError,
    EncoderDecoderConfig,
    LanguageModelConfig,
    LanguageModelNetworkConfig,
    parse_config,
)
from training.data.stored_pairs import restored_tokenizer
from training.graphs.builder import torch_gates
from training.loop import checkpoint
from training.loop.checkpoint import BEST

_OPTION = "training.init_from"


@dataclass(frozen=True, slots=True)
class StartingPoint:
    """A parent's best weights, and the vocabularies that they are for."""

    name: str
    sha256: str  # of a bundle's manifest, or of a run's weights
    config: LanguageModelConfig | EncoderDecoderConfig
    weights: Mapping[str, Tensor]
    tokenizers: tuple[Tokenizer, ...]  # a language model's, or source and target

    @property
    def record(self) -> dict[str, str]:
        """What the manifest says of the parent."""
        return {"name": self.name, "sha256": self.sha256}

    def check(self, config: LanguageModelConfig | EncoderDecoderConfig) -> None:
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
    tokenizers: tuple[Tokenizer, ...]
    if isinstance(config, EncoderDecoderConfig):
        sides = ((config.data.source, record["source"]), (config.data.target, record["target"]))
        tokenizers = tuple(restored_tokenizer(*side) for side in sides)
    else:
        tokenizers = (Characters(record["vocab"]),)
    return StartingPoint(config.name, digest, config, weights, tokenizers)


def _of_bundle(path: Path) -> StartingPoint:
    bundle = read_bundle(path)
    name = bundle.manifest.name
    if isinstance(bundle, EncoderDecoderBundle):
        raise ConfigError(
            f"{_OPTION}: {name}: the graphs of an encoder-decoder hold products of its weights; "
            "start from its run's folder instead"
        )
    try:
        config = parse_config(bundle.manifest.training.config)
    except ValidationError as error:
        raise ConfigError(
            f"{_OPTION}: {name}: its training configuration is another version's; start from its "
            "run's folder instead"
        ) from error
    if not isinstance(config, LanguageModelConfig):
        raise TypeError(type(config))
    if config.model.cell == "rnn":
        raise ConfigError(
            f"{_OPTION}: {name}: the graph of a tanh RNN holds products of its weights; start from "
            "its run's folder instead"
        )
    digest = hashlib.sha256((path / MANIFEST_FILE).read_bytes()).hexdigest()
    weights = dict(_weights_of(bundle, config.model))
    return StartingPoint(name, digest, config, weights, (Characters(bundle.vocab.tokens),))


def _weights_of(
    bundle: LanguageModelBundle, config: LanguageModelNetworkConfig
) -> Iterator[tuple[str, Tensor]]:
    """The parameters of an LSTM or GRU from its fp32 graph (`graphs/language_model`), exactly."""
    found = bundle.graph("fp32", "sequence")
    if found is None:
        raise ConfigError(f"{_OPTION}: {bundle.manifest.name}: it has no graph in fp32")
    graph = onnx.load_model_from_string(found[1]).graph
    constants = {x.name: numpy_helper.to_array(x) for x in graph.initializer}

    def tensor(value: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(np.array(value, np.float32))

    yield "embedding.weight", tensor(constants["embedding"])
    yield "output.weight", tensor(constants["output_weight"].T)
    yield "output.bias", tensor(constants["output_bias"])
    for i in range(config.num_layers):
        for part in ("weight_ih", "weight_hh"):
            stacked = constants[f"{part}{i}"][0]
            yield f"layers.{i}.{part}", tensor(torch_gates(config.cell, stacked))
        for part, bias in zip(
            ("bias_ih", "bias_hh"), np.split(constants[f"bias{i}"][0], 2), strict=True
        ):
            yield f"layers.{i}.{part}", tensor(torch_gates(config.cell, bias))


def _binding(config: LanguageModelConfig | EncoderDecoderConfig) -> Iterator[tuple[str, Any]]:
    """What a child must have like its parent: the task, how text is read, the architecture."""
    yield "task", config.task
    document = config.model_dump(mode="json")
    sides = {"": document["data"]}
    if isinstance(config, EncoderDecoderConfig):
        sides = {f"{side}.": document["data"][side] for side in ("source", "target")}
        yield "data.share_vocab", config.data.share_vocab
    for name, side in sides.items():
        if isinstance(config, EncoderDecoderConfig):
            yield f"data.{name}tokenization", side["tokenization"]
        for rule, value in side["normalization"].items():
            yield f"data.{name}normalization.{rule}", value
    for option, value in document["model"].items():
        if not option.startswith(("dropout", "weight_drop")):
            yield f"model.{option}", value
