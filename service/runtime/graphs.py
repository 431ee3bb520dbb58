"""A bundle's graphs in onnxruntime: opened from bytes, checked against the manifest."""

import os
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from service.bundle.files import BundleError
from service.bundle.manifest import Graph, Tensor
from service.runtime.onnxruntime import onnxruntime

# Inputs or outputs by name: element type and shape.
Declared: TypeAlias = Mapping[str, tuple[str, Sequence[int | str]]]

_ONNX_TYPES = {"float32": "tensor(float)", "int64": "tensor(int64)", "int32": "tensor(int32)"}


def open_graph(name: str, graph: Graph, data: bytes) -> onnxruntime.InferenceSession:
    """Open a graph on one thread, the caller's. Raises BundleError.

    Its inputs and outputs must be those in the manifest.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A plan of the memory for every shape that was ever run: it grows with what clients send, takes
    # 10 MB within minutes, and saves no time that could be measured.
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.use_env_allocators", "1")  # of `runtime`
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Left alone, a graph from bytes takes weights from any file, from the working folder on.
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", os.devnull
    )
    where = f"{name}: {graph.file}"
    try:
        # From bytes, so that the checksum holds for what runs.
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common base
        raise BundleError(f"{where}: not a usable graph: {first_line(error)}") from error
    for kind, declared, actual in (
        ("input", graph.inputs, session.get_inputs()),
        ("output", graph.outputs, session.get_outputs()),
    ):
        found = {x.name: (x.type, x.shape) for x in actual}
        expected = {x.name: (_ONNX_TYPES[x.dtype], x.shape) for x in declared}
        if found != expected:
            raise BundleError(f"{where}: its {kind}s are not the manifest's: {found}")
    return session


def first_line(error: Exception) -> str:
    """Of its message; its name where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def check_declared(where: str, graph: Graph, inputs: Declared, outputs: Declared) -> None:
    """The manifest's graph must be the graph that this code feeds. Raises BundleError."""
    for kind, declared, needed in (
        ("input", graph.inputs, inputs),
        ("output", graph.outputs, outputs),
    ):
        if _by_name(declared) != needed:
            raise BundleError(f"{where}: {kind}s must be {needed}")


def _by_name(tensors: Sequence[Tensor]) -> dict[str, tuple[str, list[int | str]]]:
    return {tensor.name: (tensor.dtype, tensor.shape) for tensor in tensors}
