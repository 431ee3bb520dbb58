"""Small bundles: one without a real graph for the store, and untrained models for the rest."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from service.bundle import (
    BOS_ID,
    EOS_ID,
    Bundle,
    GoldenVector,
    Graph,
    Limits,
    Manifest,
    Normalization,
    StateTensor,
    Vocabulary,
)
from service.bundle.store import sha256, vocab_bytes
from training.config import ModelConfig
from training.corpus import Split
from training.export import build_graphs, describe, file_name
from training.language_model import LanguageModel
from training.parity import golden_vectors

ALPHABET = "\n !',.?abcdefghijklmnopqrstuvwxyzABC\x00\x85\u2028é\u0301ß\U0001f407"
HIDDEN = 12


def manifest_of(vocab: Vocabulary, graphs: Sequence[Graph], **changes: Any) -> Manifest:
    """A manifest of a model that nobody trained; `changes` replace fields."""
    document: dict[str, Any] = {
        "format_version": 2,
        "name": "plain",
        "description": "A bundle for tests.",
        "license": "CC0-1.0",
        "created": "2026-01-01T00:00:00+00:00",
        "task": "language_model",
        "tokenization": "character",
        "normalization": Normalization(),
        "vocab": {
            "file": "vocab.json",
            "sha256": sha256(vocab_bytes(vocab)),
            "size": len(vocab),
            "pad": 0,
            "bos": 1,
            "eos": 2,
            "unk": 3,
        },
        "graphs": list(graphs),
        "precision": "fp32",
        "states": [StateTensor(name="h0", dtype="float32", shape=[HIDDEN])],
        "model": {
            "cell": "gru",
            "num_layers": 1,
            "hidden_size": HIDDEN,
            "embedding_dim": 5,
            "parameters": 1,
        },
        "limits": Limits(max_tokens=1000),
        "data": {
            "name": "nothing",
            "source": "nowhere",
            "license": "CC0-1.0",
            "sha256": "0" * 64,
            "documents": 1,
            "train_chars": 1,
            "valid_chars": 1,
            "test_chars": 0,
        },
        "metrics": {"split": "valid", "chars": 1, "tokens": 1, "measurements": []},
        "training": {"config": {}, "seed": 1, "steps": 0, "git_commit": None, "versions": {}},
        "golden": [GoldenVector(precision="fp32", tokens=[1, 2], logprobs=[-1.0], tolerance=1e-5)],
    }
    return Manifest.model_validate(document | changes)


def plain_files(
    name: str = "plain", characters: str = "abc", graph: bytes = b"not a graph", **changes: Any
) -> tuple[Manifest, dict[str, bytes]]:
    """A bundle that the store takes; no session would."""
    vocab = Vocabulary.of_characters(characters)
    described = Graph(
        role="sequence",
        precision="fp32",
        file="sequence.fp32.onnx",
        sha256=sha256(graph),
        size_bytes=len(graph),
        opset=18,
        inputs=[],
        outputs=[],
    )
    manifest = manifest_of(vocab, [described], name=name, **changes)
    return manifest, {"vocab.json": vocab_bytes(vocab), "sequence.fp32.onnx": graph}


def tiny_model(cell: str, vocab_size: int, scale: float = 2.0) -> LanguageModel:
    """An untrained model with weights large enough to have opinions."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        config = ModelConfig.model_validate(
            {"cell": cell, "num_layers": 2, "hidden_size": HIDDEN, "embedding_dim": 5}
        )
        model = LanguageModel(config, vocab_size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    return model.eval()


def tiny_files(
    cell: str, *, characters: str = ALPHABET, scale: float = 2.0, **changes: Any
) -> tuple[Manifest, dict[str, bytes]]:
    """`tiny-<cell>`: an untrained model as the exporter would write it."""
    vocab = Vocabulary.of_characters(characters)
    model = tiny_model(cell, len(vocab), scale)
    graphs = build_graphs(model)
    ids = np.array([BOS_ID, *range(4, len(vocab)), EOS_ID], np.uint16)
    held_out = Split(ids, np.array([0, len(ids)]))
    options: dict[str, Any] = {
        "name": f"tiny-{cell}",
        "model": {
            "cell": cell,
            "num_layers": 2,
            "hidden_size": HIDDEN,
            "embedding_dim": 5,
            "parameters": sum(x.numel() for x in model.parameters()),
        },
        "states": [
            StateTensor(name=name, dtype="float32", shape=[HIDDEN]) for name in model.state_names
        ],
        "golden": golden_vectors(model, held_out, vocab, ["fp32", "int8"]),
        "precision": "int8",
    }
    described = [describe(*kind, data) for kind, data in graphs.items()]
    manifest = manifest_of(vocab, described, **(options | changes))
    files = {file_name(*kind): data for kind, data in graphs.items()}
    return manifest, {"vocab.json": vocab_bytes(vocab), **files}


def in_memory(manifest: Manifest, files: Mapping[str, bytes], characters: str = ALPHABET) -> Bundle:
    """The bundle as a reader would give it."""
    graphs = {graph.file: files[graph.file] for graph in manifest.graphs}
    return Bundle(manifest, Vocabulary.of_characters(characters), graphs)
