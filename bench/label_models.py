"""Labelers of any size with random weights: a bundle for Unroll, a state dict for PyTorch.

S places: bos, the characters and eos.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from service.bundle.labeler import LabelerManifest, Labels
from service.bundle.store import write_bundle
from service.bundle.tokenization import Characters
from training.config import LabelerNetworkConfig, TextSideConfig
from training.data.labelled import LabelledSplit
from training.export.encoder_decoder import describe_side
from training.export.gate import PRECISIONS
from training.export.labeler import build_graphs, model_shape
from training.export.labeler_parity import Tempered, golden_vectors
from training.export.manifest_parts import describe_graphs, graph_files
from training.networks.labeler import Head, Labeler

_SCRIPTS = (
    (0x20, 0x7F), (0xC0, 0x180), (0x391, 0x3CA), (0x410, 0x450), (0x5D0, 0x5EB), (0x3041, 0x3061),
)  # fmt: skip
ALPHABET = "".join(
    chr(code)
    for begin, end in _SCRIPTS
    for code in range(begin, end)
    if code < 0x7F or chr(code).isalpha()
)
NUM_LABELS = 40
LENGTHS = (12, 40)  # characters of a text, each length equally often
_SEED = 1


def texts_of(count: int, seed: int) -> list[str]:
    """Random texts in normal form, each of LENGTHS characters."""
    rng = np.random.default_rng(seed)
    letters = list(ALPHABET.replace(" ", ""))  # a blank at an end would be stripped
    lengths = rng.integers(*LENGTHS, count, endpoint=True).tolist()
    return ["".join(rng.choice(letters, length)) for length in lengths]


def ensure(work: Path, name: str) -> Path:
    """The folder of a bundle named like `text-2x128`; it and `weights_of` it are written if needed.

    `text` gives labels to texts, `character` to characters; here, two layers have 128 units in each
    direction. The bundle is in a models folder of its own, since a server serves all in one.
    """
    folder = work / "models" / name
    weights = weights_of(work, name)
    # Written last: a folder that has it is complete.
    done = weights / "config.json"
    if not done.exists():
        scope, _, shape = name.partition("-")
        num_layers, hidden_size = map(int, shape.split("x"))
        sizes = {"num_layers": num_layers, "hidden_size": hidden_size, "embedding_dim": 64}
        network = LabelerNetworkConfig.model_validate(sizes)
        head = Head(num_labels=NUM_LABELS, pooling="max" if scope == "text" else None)
        vocab = Characters.of_characters(ALPHABET)
        model = _random_model(network, head, len(vocab))
        names = [f"l{i}" for i in range(NUM_LABELS)]
        outside = names[0] if scope == "character" else None
        labels = Labels.model_validate(
            {"names": names, "scope": scope, "several": False, "outside": outside}
        )
        _write_bundle(folder, model, vocab, labels)
        weights.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), weights / "weights.safetensors")
        config = {
            "vocab": list(vocab.tokens),
            "labels": names,
            "network": network.model_dump(),
            "pooling": head.pooling,
        }
        done.write_text(json.dumps(config) + "\n")
    return folder / name


def weights_of(work: Path, name: str) -> Path:
    """Where `ensure` writes the weights for PyTorch."""
    return work / "weights" / name


def _random_model(network: LabelerNetworkConfig, head: Head, vocab_size: int) -> Labeler:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model = Labeler(network, head, vocab_size)
        with torch.no_grad():
            # Larger than at initialization, so that the answers differ as after training.
            model.embedding.weight.normal_(std=1.0)
            model.output.weight.normal_(std=8.0 / np.sqrt(model.output_size))
    return model.eval()


def _write_bundle(folder: Path, model: Labeler, vocab: Characters, labels: Labels) -> None:
    tempered = Tempered(model, labels)
    graphs = build_graphs(tempered)
    side, files = describe_side("text", TextSideConfig(lang="text"), vocab)
    texts = texts_of(2, seed=0)
    held_out = LabelledSplit("valid", texts, [vocab.encode(text) for text in texts], [])
    document: dict[str, Any] = {
        "format_version": 2,
        "name": folder.name,
        "description": "Random weights, for measuring speed.",
        "license": "CC0-1.0",
        "created": "2026-01-01T00:00:00+00:00",
        "task": "labeler",
        "text": side,
        "labels": labels,
        "graphs": describe_graphs(graphs),
        "precision": "int8",
        "states": [],
        "temperature": 1.0,
        "model": model_shape(model),
        "limits": {"max_tokens": 1000},
        "data": {
            "name": "nothing",
            "source": "none",
            "license": "CC0-1.0",
            "sha256": "0" * 64,
            "train_texts": 1,
            "valid_texts": 1,
        },
        "metrics": [{"split": "valid", "texts": 1, "labels": 1, "measurements": []}],
        "examples": [],
        "training": {
            "config": {},
            "seed": _SEED,
            "steps": 0,
            "git_commit": None,
            "versions": {},
        },
        "golden": golden_vectors(tempered, held_out, PRECISIONS),
    }
    write_bundle(folder, LabelerManifest.model_validate(document), {**graph_files(graphs), **files})
