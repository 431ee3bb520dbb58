"""Small labelers: untrained models of every sort, as the exporter would write their bundles."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from service.bundle.labeler import (
    Direction,
    LabelerBundle,
    LabelerManifest,
    LabelerShape,
    Labels,
    LinearChain,
    Pooling,
)
from service.bundle.manifest import Precision, StateTensor
from service.bundle.tokenization import Characters, Tokenizer
from training.config import LabelerNetworkConfig, TextSideConfig
from training.data.labelled import LabelledSplit
from training.export.encoder_decoder import describe_side
from training.export.labeler_parity import Tempered, golden_vectors
from training.export.manifest_parts import describe_graph, file_name
from training.graphs.labeler import build_labeler
from training.networks.labeler import Head, Labeler

Sort: TypeAlias = Literal["text", "several", "forward", "plain", "bio", "chain", "restore"]

LETTERS = "abcdeiou ß\u0301\U0001f407"
ACCENTED = "áàéíóú"  # what a restored letter can be
MAX_TOKENS = 200
HIDDEN = 6  # of each direction
_PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kind:
    """What labels of one sort are, and how they are found."""

    names: Sequence[str]
    labels: Mapping[str, Any]  # other fields of the manifest's `labels`
    direction: Direction = "both"
    pooling: Pooling | None = None
    chain: bool = False


_TEXT = {"scope": "text", "several": False}
_CHARACTER = {"scope": "character", "several": False}
_BIO = ("O", "B-name", "I-name", "B-place", "I-place")
_KINDS: Mapping[Sort, _Kind] = {
    "text": _Kind(names=("de", "en", "fr"), labels=_TEXT, pooling="max"),
    "several": _Kind(
        names=("loud", "kind", "long", "odd"),
        labels={"scope": "text", "several": True},
        pooling="attention",
    ),
    "forward": _Kind(names=("de", "en", "fr"), labels=_TEXT, direction="forward", pooling="max"),
    "plain": _Kind(names=("O", "name", "place"), labels={**_CHARACTER, "outside": "O"}),
    "bio": _Kind(names=_BIO, labels={**_CHARACTER, "outside": "O", "scheme": "bio"}),
    "chain": _Kind(names=_BIO, labels={**_CHARACTER, "outside": "O", "scheme": "bio"}, chain=True),
    "restore": _Kind(names=("", *ACCENTED), labels={**_CHARACTER, "outside": "", "applied": True}),
}
SORTS = tuple(_KINDS)


def tiny_labeler(
    sort: Sort, tokenizer: Tokenizer, *, cell: str = "lstm", scale: float = 2.0, **options: Any
) -> Labeler:
    """An untrained labeler with opinions; `options` replace parts of its `Head`."""
    kind = _KINDS[sort]
    config = LabelerNetworkConfig.model_validate(
        {"cell": cell, "num_layers": 2, "hidden_size": HIDDEN, "embedding_dim": 5}
    )
    head = Head(
        **{
            "num_labels": len(kind.names),
            "direction": kind.direction,
            "pooling": kind.pooling,
            "crf": kind.chain,
            "allowed": _allowed(tokenizer, kind.names) if sort == "restore" else None,
            **options,
        }
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(31)
        model = Labeler(config, head, len(tokenizer))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(scale)
                if parameter.dim() == 1:
                    parameter.add_(torch.empty_like(parameter).uniform_(-0.3, 0.3))
            for parameter in (model.chain or torch.nn.Module()).parameters():
                parameter.copy_(torch.empty_like(parameter).uniform_(-1.0, 1.0))
    return model.eval()


def tiny_labeler_files(
    sort: Sort,
    *,
    cell: str = "lstm",
    name: str | None = None,
    changes: Mapping[str, Any] | None = None,
) -> tuple[LabelerManifest, dict[str, bytes]]:
    """`tiny-<sort>`: an untrained labeler, as the exporter would write it.

    `changes` replace fields of the manifest.
    """
    document, files = _exported(sort, cell)
    named = {"name": name or f"tiny-{sort}"}
    return LabelerManifest.model_validate({**document, **named, **(changes or {})}), {**files}


@cache
def _exported(sort: Sort, cell: str) -> tuple[Mapping[str, Any], Mapping[str, bytes]]:
    """The manifest as a document, without a name, and the files: made once for all tests."""
    tokenizer = Characters.of_characters(LETTERS)
    model = tiny_labeler(sort, tokenizer, cell=cell)
    labels = labels_of(sort)
    graphs = {x: build_labeler(model, x, several=labels.several) for x in _PRECISIONS}
    side, files = describe_side("text", TextSideConfig(lang="text"), tokenizer)
    files |= {file_name(x, "labels"): graph for x, graph in graphs.items()}
    states = [StateTensor(name=x, dtype="float32", shape=[HIDDEN]) for x in model.state_names]
    tempered = Tempered(model, labels)
    document: dict[str, Any] = {
        "format_version": 2,
        "description": "A bundle for tests.",
        "license": "CC0-1.0",
        "created": "2026-01-01T00:00:00+00:00",
        "task": "labeler",
        "text": side,
        "labels": labels,
        "chain": _chain(model),
        "graphs": [describe_graph(x, "labels", graph) for x, graph in graphs.items()],
        "precision": "int8",
        "states": states,
        "temperature": 1.0,
        "model": _shape(model),
        "limits": {"max_tokens": MAX_TOKENS},
        "data": {
            "name": "nothing",
            "source": "nowhere",
            "license": "CC0-1.0",
            "sha256": "0" * 64,
            "train_texts": 1,
            "valid_texts": 1,
        },
        "metrics": [{"split": "test", "texts": 1, "labels": 1, "measurements": []}],
        "examples": [],
        "training": {"config": {}, "seed": 1, "steps": 0, "git_commit": None, "versions": {}},
        "golden": golden_vectors(tempered, _golden_texts(tokenizer), _PRECISIONS),
    }
    return document, files


def labeler_in_memory(
    manifest: LabelerManifest, files: Mapping[str, bytes], tokenizer: Tokenizer | None = None
) -> LabelerBundle:
    """The bundle as a reader would give it."""
    graphs = {graph.file: files[graph.file] for graph in manifest.graphs}
    return LabelerBundle(manifest, tokenizer or Characters.of_characters(LETTERS), graphs)


def unstripped(manifest: LabelerManifest) -> LabelerManifest:
    """The manifest of a model that keeps white space at both ends, so that texts can go on."""
    rules = manifest.text.normalization.model_copy(update={"strip": False})
    side = manifest.text.model_copy(update={"normalization": rules})
    return manifest.model_copy(update={"text": side})


def labels_of(sort: Sort) -> Labels:
    """The manifest's labels of a sort."""
    kind = _KINDS[sort]
    return Labels.model_validate({"names": list(kind.names), **kind.labels})


def _allowed(tokenizer: Tokenizer, names: Sequence[str]) -> torch.Tensor:
    """[V, L]: any token may stay as it is, and a vowel may become one of the accented letters."""
    allowed = torch.zeros(len(tokenizer), len(names), dtype=torch.bool)
    allowed[:, 0] = True
    for vowel, accented in zip("aaeiou", ACCENTED, strict=True):
        allowed[tokenizer.tokens.index(vowel), names.index(accented)] = True
    return allowed


def _chain(model: Labeler) -> LinearChain | None:
    if model.chain is None:
        return None
    chain = model.chain
    return LinearChain(
        transitions=chain.transitions.tolist(), first=chain.first.tolist(), last=chain.last.tolist()
    )


def _shape(model: Labeler) -> LabelerShape:
    return LabelerShape(
        cell=model.config.cell,
        direction=model.head.direction,
        num_layers=model.config.num_layers,
        hidden_size=model.config.hidden_size,
        embedding_dim=model.config.embedding_dim,
        pooling=model.head.pooling,
        parameters=sum(x.numel() for x in model.parameters()),
    )


def _golden_texts(tokenizer: Tokenizer) -> LabelledSplit:
    """Two texts of different lengths, made of the vocabulary's tokens."""
    tokens = [np.arange(4, 4 + length, dtype=np.uint16) for length in (3, 5)]
    return LabelledSplit("made", [tokenizer.decode(x) for x in tokens], tokens, [])
