"""The parts of a manifest that every kind of model has."""

import datetime
import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnxruntime
import torch

from service.bundle.files import sha256, vocab_bytes
from service.bundle.manifest import (
    FORMAT_VERSION,
    MAX_CURVE_POINTS,
    Graph,
    LearningCurve,
    Precision,
    Role,
    Tensor,
    TrainingRecord,
    VocabFile,
)
from service.bundle.text import BOS_ID, EOS_ID, PAD_ID, UNK_ID, Vocabulary
from service.bundle.tokenization import Tokenizer
from training.config import AnyConfig
from training.errors import ExportError
from training.graphs.builder import OPSET
from training.loop.run_log import LOG_FILE, read_log
from training.loop.task import Curve

Graphs: TypeAlias = Mapping[tuple[Precision, Role], bytes]


def file_name(precision: Precision, role: Role) -> str:
    """A graph's file in the bundle."""
    return f"{role}.{precision}.onnx"


def describe_graph(precision: Precision, role: Role, graph: bytes) -> Graph:
    """A graph as the manifest writes it."""
    proto = onnx.load_model_from_string(graph)
    return Graph(
        role=role,
        precision=precision,
        file=file_name(precision, role),
        sha256=sha256(graph),
        size_bytes=len(graph),
        opset=OPSET,
        inputs=[_describe_tensor(x) for x in proto.graph.input],
        outputs=[_describe_tensor(x) for x in proto.graph.output],
    )


def graph_files(graphs: Graphs) -> dict[str, bytes]:
    """The graphs by their files in the bundle."""
    return {file_name(*kind): data for kind, data in graphs.items()}


def describe_graphs(graphs: Graphs) -> list[Graph]:
    """Every graph as the manifest writes it."""
    return [describe_graph(*kind, data) for kind, data in graphs.items()]


def describe_vocab(file: str, vocab: Vocabulary | Tokenizer) -> VocabFile:
    """A vocabulary's file as the manifest writes it."""
    checksum, size = sha256(vocab_bytes(vocab)), len(vocab.tokens)
    return VocabFile(
        file=file, sha256=checksum, size=size, pad=PAD_ID, bos=BOS_ID, eos=EOS_ID, unk=UNK_ID
    )


def heading(config: AnyConfig, name: str | None) -> dict[str, Any]:
    """The fields that every manifest begins with; the default name is the configuration's."""
    return {
        "format_version": FORMAT_VERSION,
        "name": name or config.name,
        "description": config.description,
        "license": config.license,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def training_record(
    run_dir: Path, config: AnyConfig, record: Mapping[str, Any], curve: Curve
) -> TrainingRecord:
    """How the weights were trained; `record` is their checkpoint's."""
    return TrainingRecord(
        config=record["config"],
        seed=config.seed,
        steps=record["step"],
        git_commit=_git_commit(),
        versions=_versions(),
        parent=record.get("parent"),
        curve=learning_curve(run_dir, curve),
    )


def read_metrics(run_dir: Path) -> dict[str, Any]:
    """What `train` measured, from the run's folder. Raises ExportError if it is not there."""
    path = run_dir / "metrics.json"
    if not path.exists():
        raise ExportError(f"{path}: not there; `train` writes it when it has finished")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def learning_curve(run_dir: Path, curve: Curve) -> LearningCurve | None:
    """What validation measured, from the run's log; None if there is nothing.

    If there are more than MAX_CURVE_POINTS measurements, only every second, third, … is kept.
    """
    lines = [x for x in read_log(run_dir / LOG_FILE) if x["kind"] == "valid"]
    lines = lines[:: -(-len(lines) // MAX_CURVE_POINTS) or 1]
    if not lines:
        return None
    return LearningCurve(
        unit=curve.label,
        steps=[x["step"] for x in lines],
        values=[x[curve.key] for x in lines],
    )


def _git_commit() -> str | None:
    """The commit of the code; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide the numbers."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
    }


def _describe_tensor(info: onnx.ValueInfoProto) -> Tensor:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type).name
    shape = [d.dim_param or d.dim_value for d in info.type.tensor_type.shape.dim]
    return Tensor.model_validate({"name": info.name, "dtype": dtype, "shape": shape})
