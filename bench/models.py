"""Models with random weights, for measuring speed without training.

`models/<name>/` is a bundle to serve; `weights/<name>/` has the same weights for the peers.
"""

import json
import string
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from service.bundle.files import vocab_bytes
from service.bundle.language_model import (
    LanguageModelDataSource,
    LanguageModelLimits,
    LanguageModelManifest,
    LanguageModelMetrics,
)
from service.bundle.manifest import FORMAT_VERSION, TrainingRecord
from service.bundle.store import write_bundle
from service.bundle.text import BOS_ID, SPECIAL_TOKENS, Normalization, Vocabulary
from training.config import LanguageModelNetworkConfig
from training.data.corpus import Split
from training.export.language_model import (
    VOCAB_FILE,
    build_graphs,
    default_precision,
    state_tensors,
)
from training.export.language_model_parity import golden_vectors
from training.export.manifest_parts import describe_graphs, describe_vocab, graph_files
from training.export.mixture import network_shape
from training.networks.language_model import LanguageModel

WORK = Path(__file__).parent / ".work"  # models, weights, logs; not in the repository
ALPHABET = "\n" + "".join(sorted(string.ascii_letters + string.digits + string.punctuation + " "))
SHAPES = tuple((layers, hidden) for hidden in (128, 256, 512, 1024) for layers in (1, 2))
_SEED = 1
# Keeps special tokens out of reach, so that no text ends early and every answer has full length.
_SPECIAL_BIAS = -30.0


def name_of(num_layers: int, hidden_size: int, cell: str = "lstm") -> str:
    """The name of a size: `lstm-2x512` has two layers of 512 units."""
    return f"{cell}-{num_layers}x{hidden_size}"


def random_model(num_layers: int, hidden_size: int, cell: str = "lstm") -> LanguageModel:
    """An untrained model; its texts are noise with some structure."""
    config = LanguageModelNetworkConfig.model_validate(
        {
            "cell": cell,
            "num_layers": num_layers,
            "hidden_size": hidden_size,
            "embedding_dim": 64,
        }
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model = LanguageModel(config, len(SPECIAL_TOKENS) + len(ALPHABET))
        with torch.no_grad():
            # Larger than at initialization, so that the logits differ as after training.
            model.output.weight.normal_(std=4.0 / np.sqrt(hidden_size))
            model.output.bias[: len(SPECIAL_TOKENS)] = _SPECIAL_BIAS
    return model.eval()


def ensure(work: Path, num_layers: int, hidden_size: int, cell: str = "lstm") -> str:
    """Write the bundle and the peers' weights unless they exist; return the model's name."""
    name = name_of(num_layers, hidden_size, cell)
    if not (work / "weights" / name / "config.json").exists():
        model = random_model(num_layers, hidden_size, cell)
        _write_bundle(work / "models" / name, model)
        _write_weights(work / "weights" / name, model)
    return name


def _write_bundle(folder: Path, model: LanguageModel) -> None:
    """Write each bundle into its own models folder, since a server serves all bundles in one."""
    vocab = Vocabulary.of_characters(ALPHABET)
    graphs = build_graphs(model)
    ids = np.array([BOS_ID, *vocab.encode("held out by nobody")], np.uint16)
    manifest = LanguageModelManifest(
        format_version=FORMAT_VERSION,
        name=folder.name,
        description="Random weights, for measuring speed.",
        license="CC0-1.0",
        created="2026-01-01T00:00:00+00:00",
        task="language_model",
        tokenization="character",
        normalization=Normalization(),
        vocab=describe_vocab(VOCAB_FILE, vocab),
        graphs=describe_graphs(graphs),
        precision=default_precision(model, "int8"),
        states=state_tensors(model),
        model=network_shape(model),
        limits=LanguageModelLimits(max_tokens=100_000),
        data=LanguageModelDataSource(
            name="nothing",
            source="none",
            license="CC0-1.0",
            sha256="0" * 64,
            documents=1,
            train_chars=1,
            valid_chars=1,
            test_chars=0,
        ),
        metrics=LanguageModelMetrics(split="valid", chars=1, tokens=1, measurements=[]),
        training=TrainingRecord(config={}, seed=_SEED, steps=0, git_commit=None, versions={}),
        golden=golden_vectors(model, Split(ids, np.array([0, len(ids)])), vocab, ["fp32", "int8"]),
    )
    write_bundle(folder, manifest, {VOCAB_FILE: vocab_bytes(vocab), **graph_files(graphs)})


def _write_weights(folder: Path, model: LanguageModel) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "weights.safetensors")
    (folder / "step.onnx").write_bytes(build_graphs(model)["fp32", "sequence"])
    config = {
        "cell": model.config.cell,
        "num_layers": model.config.num_layers,
        "hidden_size": model.config.hidden_size,
        "embedding_dim": model.config.embedding_dim,
        "vocab": list(Vocabulary.of_characters(ALPHABET).tokens),
        "states": model.state_names,
    }
    # Written last: a folder that has it is complete.
    (folder / "config.json").write_text(json.dumps(config) + "\n")
