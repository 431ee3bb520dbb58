"""The graphs of mixtures: the module's numbers, and every row the same whoever is beside it."""

from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle.manifest import Precision, Role
from tests.training.helpers import split_of, tiny_model
from training.evaluation import ngram
from training.evaluation.ngram_network import network
from training.export.language_model_parity import OnnxLanguageModel
from training.export.sessions import open_session
from training.graphs import language_model as onnx_graph
from training.networks.mixture import AnyLanguageModel, Mixture

V = 37
KINDS = (("lstm",), ("gru", "rnn"), ())  # networks; with none the n-gram is alone
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
ROLES: tuple[Role, ...] = ("step", "sequence")
lengths = st.integers(1, 9)


@cache
def made(cells: tuple[str, ...]) -> AnyLanguageModel:
    rng = np.random.default_rng(0)
    text = split_of([(4 + np.abs(rng.normal(0, 8, 2000)).astype(int) % (V - 4)).tolist()])
    counted = network(ngram.fit(text.ids, text.starts, V, 4)[-1]).eval()
    if not cells:
        return counted
    with torch.random.fork_rng():
        torch.manual_seed(1)
        networks = [tiny_model(V, cell=x, num_layers=2, hidden_size=17) for x in cells]
    weights = [0.8 / len(cells)] * len(cells) + [0.2]
    return Mixture([x.tempered(0.8) for x in networks], counted, weights, 1.2).eval()


@cache
def sequence(cells: tuple[str, ...], precision: Precision) -> OnnxLanguageModel:
    model = made(cells)
    return OnnxLanguageModel.load(onnx_graph.build(model, precision), model.state_names)


def inputs(model: AnyLanguageModel, seed: int, batch: int, time: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    states = [x.numpy() for x in model.random_states(batch, rng)]
    return rng.integers(2, V, (batch, time)), states


kinds = st.sampled_from([(x, y) for x in KINDS for y in PRECISIONS if x or y == "fp32"])


@pytest.mark.parametrize("cells", KINDS, ids=str)
def test_the_numbers_are_the_modules(cells: tuple[str, ...]) -> None:
    model = made(cells)
    tokens, states = inputs(model, 1, 5, 20)
    _, logprobs, after = sequence(cells, "fp32").run(tokens, tokens, states)
    with torch.no_grad():
        wanted, states_after = model(torch.from_numpy(tokens), list(map(torch.from_numpy, states)))
    np.testing.assert_allclose(logprobs, wanted.numpy(), rtol=2e-6, atol=1e-5)
    for found, right in zip(after, states_after, strict=True):
        np.testing.assert_allclose(found, right.numpy(), rtol=0, atol=1e-5)


@given(kinds, st.lists(lengths, min_size=1, max_size=33), st.integers(0, 2**16))
@settings(deadline=None, max_examples=40)
def test_a_row_is_the_same_alone_and_among_ragged_neighbours(
    kind: tuple[tuple[str, ...], Precision], ends: list[int], seed: int
) -> None:
    graph = sequence(*kind)
    tokens, states = inputs(made(kind[0]), seed, len(ends), max(ends))
    picked, logprobs, after = graph.run(tokens, tokens, states, np.array(ends, np.int32))
    for row, end in enumerate(ends):
        only = slice(row, row + 1)
        own = tokens[only, :end]
        alone = graph.run(own, own, [x[only] for x in states])
        assert np.array_equal(alone[0][0], picked[row, :end])
        assert np.array_equal(alone[1][0], logprobs[row, :end])
        assert all(np.array_equal(x[row], y[0]) for x, y in zip(after, alone[2], strict=True))


@given(kinds, st.lists(lengths, min_size=1, max_size=5), st.integers(0, 2**16))
@settings(deadline=None, max_examples=40)
def test_a_text_is_the_same_in_one_call_and_in_chunks(
    kind: tuple[tuple[str, ...], Precision], chunks: list[int], seed: int
) -> None:
    graph = sequence(*kind)
    tokens, states = inputs(made(kind[0]), seed, 1 + seed % 9, sum(chunks))
    _, whole, after = graph.run(tokens, tokens, states)
    parts = []
    for piece in np.split(tokens, np.cumsum(chunks)[:-1], axis=1):
        _, part, states = graph.run(piece, piece, states)
        parts.append(part)
    assert np.array_equal(np.concatenate(parts, axis=1), whole)
    assert all(map(np.array_equal, states, after))


@pytest.mark.parametrize("adapting", [False, True])
@pytest.mark.parametrize("cells", KINDS, ids=str)
def test_stepping_is_reading_bit_for_bit(cells: tuple[str, ...], adapting: bool) -> None:
    model = made(cells)
    precision: Precision = "int8" if cells else "fp32"
    step, whole = (
        open_session(onnx_graph.build(model, precision, role, adapting=adapting)) for role in ROLES
    )
    outputs = [x.name for x in step.get_outputs()]
    for batch in (1, 3, 16, 33):
        tokens, states = inputs(model, batch, batch, 4)
        named = dict(zip(model.state_names, states, strict=True))
        full = np.full(batch, 4, np.int32)
        read = whole.run(outputs, {"tokens": tokens, "targets": tokens, "lengths": full, **named})
        written = []
        for t in range(4):
            found = step.run(outputs, {"tokens": tokens[:, t], **named})
            written.append(dict(zip(outputs, found, strict=True)))
            named = {name: written[-1][f"{name}_out"] for name in model.state_names}
        for name, right in zip(outputs, read, strict=True):
            if name.endswith("_out"):
                assert np.array_equal(written[-1][name], right)
            else:
                assert np.array_equal(np.stack([x[name] for x in written], axis=1), right)


def test_what_an_adapting_graph_reads_comes_after_the_log_probabilities() -> None:
    model = made(("gru", "rnn"))
    graph = onnx.load_model_from_string(onnx_graph.build(model, adapting=True)).graph
    names = [x.name for x in graph.output]
    assert names[:2] == ["target_logprobs", "logprobs"]
    assert names[2:7] == ["hidden0", "logits0", "hidden1", "logits1", "ngram_probs"]
    assert names[7:] == [f"{x}_out" for x in model.state_names]
