"""The n-gram's nodes in onnxruntime: the model's numbers, the same bits whoever is beside a row."""

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from tests.training.ngram_models import models, text_model
from training.evaluation.ngram import NGramModel
from training.evaluation.ngram_network import network
from training.export.sessions import open_session
from training.graphs import ngram as ngram_graph
from training.graphs.builder import GraphBuilder, add_axes, finish_model, float_info
from training.networks.ngram import NGram

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
quick = settings(deadline=None, max_examples=40)


class Graphs(NamedTuple):
    """A module and its two graphs in onnxruntime."""

    module: NGram
    sequence: onnxruntime.InferenceSession
    step: onnxruntime.InferenceSession

    @classmethod
    def of(cls, model: NGramModel) -> "Graphs":
        module = network(model)
        return cls(module, open_session(sequence_graph(module)), open_session(step_graph(module)))

    def read(self, tokens: Ids, nodes: Floats, lengths: Any = None) -> tuple[Floats, Floats]:
        """[B, T] tokens to [B, T, V] probabilities, and the nodes after."""
        lengths = np.full(len(tokens), tokens.shape[1]) if lengths is None else lengths
        feeds = {"tokens": tokens, "lengths": np.int32(lengths), "ngram_nodes": nodes}
        probs, after = self.sequence.run(None, feeds)
        return probs, after

    def nodes(self, batch: int, seed: int) -> Floats:
        states: Floats = self.module.random_states(batch, np.random.default_rng(seed))[0].numpy()
        return states


def sequence_graph(module: NGram) -> bytes:
    graph = GraphBuilder()
    add_axes(graph)
    probs = ngram_graph.add_sequence(graph, module)
    inputs = [
        helper.make_tensor_value_info("tokens", TensorProto.INT64, ["B", "T"]),
        helper.make_tensor_value_info("lengths", TensorProto.INT32, ["B"]),
        float_info("ngram_nodes", ["B", module.order - 1]),
    ]
    outputs = [
        float_info(probs, ["B", "T", module.vocab_size]),
        float_info("ngram_nodes_out", ["B", module.order - 1]),
    ]
    return finish_model(graph, inputs, outputs)


def step_graph(module: NGram) -> bytes:
    graph = GraphBuilder()
    add_axes(graph)
    probs = ngram_graph.add_step(graph, module)
    inputs = [
        helper.make_tensor_value_info("tokens", TensorProto.INT64, ["B"]),
        float_info("ngram_nodes", ["B", module.order - 1]),
    ]
    outputs = [
        float_info(probs, ["B", module.vocab_size]),
        float_info("ngram_nodes_out", ["B", module.order - 1]),
    ]
    return finish_model(graph, inputs, outputs)


@cache
def graphs(order: int, vocab_size: int = 37) -> Graphs:
    return Graphs.of(text_model(order, vocab_size))


def text_like(graph: Graphs, rng: np.random.Generator, batch: int, time: int) -> Ids:
    """[B, T] tokens drawn from the model itself, so that long histories occur."""
    tokens = rng.integers(0, graph.module.vocab_size, (batch, time))
    nodes = graph.nodes(batch, int(rng.integers(1 << 30)))
    for t in range(time - 1):
        probs, nodes = graph.step.run(None, {"tokens": tokens[:, t], "ngram_nodes": nodes})
        uniform = rng.random((batch, 1))
        tokens[:, t + 1] = (probs.cumsum(axis=1) < uniform).sum(axis=1).clip(max=probs.shape[1] - 1)
    return tokens


@quick
@given(models(), st.integers(0, 99))
def test_probabilities_are_the_models(model: NGramModel, seed: int) -> None:
    graph = Graphs.of(model)
    tokens = text_like(graph, np.random.default_rng(seed), 1, 40)
    probs, _ = graph.read(tokens, np.zeros((1, model.order - 1), np.float32))
    wanted = model.distributions(np.append(tokens[0], 0))[1:]
    np.testing.assert_allclose(probs[0], wanted, rtol=3e-6, atol=0)
    likely = wanted > 0
    difference = np.abs(np.log(probs[0][likely]) - np.log(wanted[likely]))
    assert difference.mean() < 5e-7


@pytest.mark.parametrize("order", [2, 3, 6, 10])
@pytest.mark.parametrize("vocab_size", [5, 37, 130, 700])  # the last is read in a Scan
def test_a_row_has_the_same_bits_alone_and_among_others(order: int, vocab_size: int) -> None:
    graph = graphs(order, vocab_size)
    tokens = text_like(graph, np.random.default_rng(order), 33, 19)
    nodes = graph.nodes(33, order)
    lengths = 1 + np.arange(33) % 19
    probs, after = graph.read(tokens, nodes)
    ragged, ragged_after = graph.read(tokens, nodes, lengths)
    for row, length in enumerate(lengths):
        only = slice(row, row + 1)
        alone, alone_after = graph.read(tokens[only, :length], nodes[only])
        assert np.array_equal(alone, probs[only, :length])
        assert np.array_equal(alone, ragged[only, :length])
        assert np.array_equal(alone_after, ragged_after[only])
    assert np.array_equal(ragged_after[18], after[18])


@quick
@given(
    st.sampled_from([(2, 37), (3, 37), (4, 700), (6, 37), (10, 37)]),
    st.integers(1, 40),
    st.integers(2, 30),
    st.integers(0, 99),
    st.data(),
)
def test_pieces_and_steps_have_the_bits_of_the_whole(
    sizes: tuple[int, int], batch: int, time: int, seed: int, data: st.DataObject
) -> None:
    graph = graphs(*sizes)
    tokens = text_like(graph, np.random.default_rng(seed), batch, time)
    nodes = graph.nodes(batch, seed)
    whole, whole_after = graph.read(tokens, nodes)
    cut = data.draw(st.integers(1, time - 1))
    first, between = graph.read(tokens[:, :cut], nodes)
    second, after = graph.read(tokens[:, cut:], between)
    assert np.array_equal(np.concatenate([first, second], axis=1), whole)
    assert np.array_equal(after, whole_after)
    for t in range(time):
        probs, nodes = graph.step.run(None, {"tokens": tokens[:, t], "ngram_nodes": nodes})
        assert np.array_equal(probs, whole[:, t])
    assert np.array_equal(nodes, whole_after)


def test_a_row_of_no_tokens_keeps_its_state() -> None:
    graph = graphs(6)
    nodes = graph.nodes(2, 0)
    _, after = graph.read(np.array([[5, 6], [7, 8]]), nodes, [0, 2])
    assert np.array_equal(after[0], nodes[0])
