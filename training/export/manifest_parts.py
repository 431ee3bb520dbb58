"""What every export writes: graphs as the manifest describes them, where the weights come from."""

import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
import onnxruntime
import torch

from service.bundle.files import sha256
from service.bundle.manifest import (
    MAX_CURVE_POINTS,
    Graph,
    LearningCurve,
    Precision,
    Role,
    Tensor,
)
from training.graphs.builder import OPSET
from training.loop.run_log import LOG_FILE, read_log
from training.loop.task import Curve

# Nats a token on the mean of held-out text: PyTorch and onnxruntime in single precision, against
# PyTorch in double precision. What a single token may differ by, `precision` says.
MAX_DIFFERENCE = 1e-5
# Where a sum lies between two steps of a state, rounding decides which it takes: mean nats a token.
MAX_INT8_DIFFERENCE = 1e-3
MAX_QUANTIZATION_LOSS = 0.002  # bits per character, or target token, that int8 may be worse


Graphs: TypeAlias = Mapping[tuple[Precision, Role], bytes]


class ExportError(Exception):
    """Nothing was written; the message says why."""


class Unverifiable(ExportError):
    """Nobody can say whether the int8 graphs are right: the bundle is written without them."""


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


def open_session(graph: bytes) -> onnxruntime.InferenceSession:
    """A graph on one thread, as the service runs it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def git_commit() -> str | None:
    """The commit of the code; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def learning_curve(run_dir: Path, curve: Curve) -> LearningCurve | None:
    """What validation measured, from the run's log; None where there is none.

    Of more than MAX_CURVE_POINTS measurements every second, third, … is left.
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


def versions() -> dict[str, str]:
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
