"""Graphs in onnxruntime, as the checks of the export run them."""

import onnxruntime


def open_session(graph: bytes) -> onnxruntime.InferenceSession:
    """A graph on one thread, as the service runs it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
