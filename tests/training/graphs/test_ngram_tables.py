"""The packed tables: unpacked to the same numbers, once, when the graph is loaded."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import helper

from tests.training.graphs.test_ngram import sequence_graph, step_graph
from tests.training.ngram_models import text_model
from training.evaluation.ngram_network import network
from training.export.sessions import open_session
from training.graphs.builder import GraphBuilder, finish_model
from training.graphs.ngram_tables import _add_bases, _add_packed, add_tables
from training.networks.ngram import NGram
from training.networks.ngram_trie import RUN

Floats = npt.NDArray[np.float64]


def unpacked(graph: GraphBuilder, name: str, like: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A table, as onnxruntime computes it."""
    graph.add("Identity", [name], "found")
    kind = helper.np_dtype_to_tensor_dtype(like.dtype)
    info = helper.make_tensor_value_info("found", kind, like.shape)
    values: npt.NDArray[Any] = open_session(finish_model(graph, [], [info])).run(None, {})[0]
    return values


def drawn(distinct: int, size: int, skew: float) -> Floats:
    """Numbers of which a few are frequent, more so the larger `skew` is."""
    rng = np.random.default_rng(0)
    book = rng.random(distinct)
    return book[(distinct * rng.random(size) ** skew).astype(np.int64)]


@pytest.mark.parametrize(
    ("distinct", "skew", "byte_count"),
    [
        (1, 1, 1.0),
        (256, 1, 1.0),
        (257, 9, 1.1),
        (5000, 9, 1.7),  # most in a byte, some in three
        (5000, 1, 2.0),
        (90_000, 1, 8.0),  # not worth a book
    ],
)
def test_packed_numbers_are_exact_and_small(distinct: int, skew: float, byte_count: float) -> None:
    values = drawn(distinct, 100_000, skew)
    graph = GraphBuilder()
    found = unpacked(graph, _add_packed(graph, "x", values), values)
    assert np.array_equal(found, values)
    assert len(np.unique(values)) > distinct * 0.6
    size = sum(len(x.raw_data) for x in graph.constants)
    book = 8 * len(np.unique(values)) if byte_count < 8 else 0
    assert size - book <= byte_count * len(values) + 64


@pytest.mark.parametrize("vocab_size", [37, 700])  # colors of a byte, and larger ones
@pytest.mark.parametrize("name", ["child", "begin", "color", "mass_runs", "log_gamma"])
def test_tables_are_the_tries(vocab_size: int, name: str) -> None:
    trie = network(text_model(4, vocab_size)).trie
    gamma = trie.gamma.astype(np.float32).astype(np.float64)
    gamma[trie.root] = 1.0
    wanted: dict[str, npt.NDArray[Any]] = {
        "child": trie.child.astype(np.int32),
        "color": trie.color.astype(np.uint8 if trie.color.max() < 256 else np.int32),
        "begin": (trie.base * RUN).astype(np.int32),
        "mass_runs": trie.mass.astype(np.float32).reshape(-1, RUN),
        "log_gamma": np.log(gamma),
    }
    graph = GraphBuilder()
    add_tables(graph, trie)
    assert np.array_equal(unpacked(graph, f"ngram_{name}", wanted[name]), wanted[name])


@pytest.mark.parametrize("vocab_size", [37, 700])  # the larger one's sequence graph is a Scan
@pytest.mark.parametrize("form", [sequence_graph, step_graph])
def test_nothing_is_left_to_unpack_in_a_run(
    form: Callable[[NGram], bytes], vocab_size: int, tmp_path: Path
) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3  # a warning that the file suits this machine alone
    graph = form(network(text_model(6, vocab_size)))
    onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(options.optimized_model_filepath).graph.node
    assert not {"BitShift", "TopK", "ScatterElements"} & {node.op_type for node in nodes}
    bodies = [x.g.node for node in nodes for x in node.attribute if x.HasField("g")]
    every = [node.op_type for part in (nodes, *bodies) for node in part]
    assert every.count("CumSum") == 1


def test_bases_beyond_two_bytes_are_exact() -> None:
    trie = network(text_model(4)).trie
    far = replace(trie, base=trie.base + (trie.base % 7 << 16))
    graph = GraphBuilder()
    wanted = far.base.astype(np.int32)
    assert np.array_equal(unpacked(graph, _add_bases(graph, far), wanted), wanted)
