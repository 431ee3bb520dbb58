"""The exported graph: PyTorch's numbers, and every row the same bit by bit whoever is beside it."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle.manifest import Precision, Role
from tests.training.helpers import tiny_model
from training.export.language_model_parity import OnnxLanguageModel, States
from training.export.precision import MAX_DIFFERENCE
from training.graphs import language_model as onnx_graph
from training.graphs.builder import OPSET
from training.graphs.language_model_reference import reference_logprobs
from training.networks.language_model import LanguageModel

CELLS = ("rnn", "gru", "lstm")
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
KINDS = [(precision, role) for precision in PRECISIONS for role in onnx_graph.ROLES[precision]]
# Sizes around the vector widths of the kernels, and one that needs several blocks of columns.
HIDDEN_SIZES = (1, 7, 16, 33, 96)
MANY_UNITS = 336  # as shipped: sums that the kernels cut into blocks
V = 37
Ids = npt.NDArray[np.int64]
Kind = tuple[Precision, Role]


@cache
def models(
    cell: str, num_layers: int, hidden_size: int = 33, *, tied: bool = False
) -> tuple[LanguageModel, OnnxLanguageModel]:
    """A model with weights as large as trained ones, and its graph in onnxruntime."""
    with torch.random.fork_rng():
        torch.manual_seed(hidden_size)
        options: dict[str, Any] = {"cell": cell, "num_layers": num_layers}
        model = tiny_model(
            V,
            hidden_size=hidden_size,
            embedding_dim=hidden_size if tied else 9,
            tie_embeddings=tied,
            **options,
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model, OnnxLanguageModel.load(onnx_graph.build(model), model.state_names)


def random_inputs(model: LanguageModel, rng: np.random.Generator, batch: int, time: int) -> Any:
    tokens, targets = (rng.integers(0, V, (batch, time)) for _ in range(2))
    shape = (batch, model.config.hidden_size)
    states = [rng.uniform(-1, 1, shape).astype(np.float32) for _ in model.state_names]
    return tokens, targets, states


def expected(
    model: LanguageModel, tokens: Ids, targets: Ids, states: States
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], list[npt.NDArray[np.float32]]]:
    with torch.no_grad():
        logits, after = model(torch.from_numpy(tokens), [torch.from_numpy(x) for x in states])
    logprobs = torch.log_softmax(logits, -1).numpy()
    picked = np.take_along_axis(logprobs, targets[..., None], 2)[..., 0]
    return picked, logprobs, [x.numpy() for x in after]


# --- the numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (5, 1), (4, 23)])
def test_log_probabilities_and_states_are_pytorchs(
    cell: str, num_layers: int, tied: bool, shape: tuple[int, int]
) -> None:
    model, onnx_model = models(cell, num_layers, tied=tied)
    inputs = random_inputs(model, np.random.default_rng(1), *shape)
    picked, logprobs, after = onnx_model.run(*inputs)
    wanted_picked, wanted, wanted_after = expected(model, *inputs)
    np.testing.assert_allclose(logprobs, wanted, rtol=0, atol=MAX_DIFFERENCE)
    np.testing.assert_allclose(picked, wanted_picked, rtol=0, atol=MAX_DIFFERENCE)
    for found, state in zip(after, wanted_after, strict=True):
        np.testing.assert_allclose(found, state, rtol=0, atol=MAX_DIFFERENCE)


@pytest.mark.parametrize("cell", CELLS)
def test_probabilities_sum_to_one(cell: str) -> None:
    model, onnx_model = models(cell, 1)
    _, logprobs, _ = onnx_model.run(*random_inputs(model, np.random.default_rng(1), 3, 5))
    np.testing.assert_allclose(np.exp(logprobs).sum(-1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_the_picked_ones_are_the_targets(cell: str) -> None:
    model, onnx_model = models(cell, 2)
    tokens, targets, states = random_inputs(model, np.random.default_rng(1), 3, 5)
    picked, logprobs, _ = onnx_model.run(tokens, targets, states)
    assert np.array_equal(picked, np.take_along_axis(logprobs, targets[..., None], 2)[..., 0])


# --- nobody else in your answer -----------------------------------------------------------------


def precise_models(
    precision: Precision, cell: str, num_layers: int, hidden_size: int
) -> tuple[LanguageModel, OnnxLanguageModel]:
    """A model, and its sequence graph in that precision."""
    if precision == "fp32":
        return models(cell, num_layers, hidden_size)
    model, sequence, _ = int8_models(cell, num_layers, hidden_size)
    return model, sequence


# A row of its own: where it ends, and into which calls it is cut.
lengths = st.integers(1, 12)
sequence_graphs = st.tuples(
    st.sampled_from(PRECISIONS),
    st.sampled_from(CELLS),
    st.integers(1, 2),
    st.sampled_from(HIDDEN_SIZES),
)
SequenceKind = tuple[Precision, str, int, int]


@given(
    sequence_graphs,
    st.lists(lengths, min_size=1, max_size=40),
    st.integers(0, 2**16),
)
@settings(deadline=None, max_examples=100)
def test_a_row_is_the_same_alone_and_among_ragged_neighbours(
    kind: SequenceKind, ends: list[int], seed: int
) -> None:
    model, onnx_model = precise_models(*kind)
    rng = np.random.default_rng(seed)
    tokens, targets, states = random_inputs(model, rng, len(ends), max(ends))
    picked, logprobs, after = onnx_model.run(tokens, targets, states, np.array(ends, np.int32))
    for row, end in enumerate(ends):
        only = slice(row, row + 1)
        own = [state[only] for state in states]
        alone = onnx_model.run(tokens[only, :end], targets[only, :end], own)
        assert np.array_equal(alone[0][0], picked[row, :end])
        assert np.array_equal(alone[1][0], logprobs[row, :end])
        for state, state_alone in zip(after, alone[2], strict=True):
            assert np.array_equal(state[row], state_alone[0])


@given(
    sequence_graphs,
    st.lists(lengths, min_size=1, max_size=5),
    st.integers(0, 2**16),
)
@settings(deadline=None, max_examples=100)
def test_a_text_is_the_same_in_one_call_and_in_chunks(
    kind: SequenceKind, chunks: list[int], seed: int
) -> None:
    model, onnx_model = precise_models(*kind)
    rng = np.random.default_rng(seed)
    tokens, targets, states = random_inputs(model, rng, 1 + seed % 9, sum(chunks))
    _, whole, after_whole = onnx_model.run(tokens, targets, states)
    parts = []
    for end, chunk in zip(np.cumsum(chunks), chunks, strict=True):
        piece = slice(end - chunk, end)
        _, part, states = onnx_model.run(tokens[:, piece], targets[:, piece], states)
        parts.append(part)
    assert np.array_equal(np.concatenate(parts, axis=1), whole)
    assert all(map(np.array_equal, states, after_whole))


@given(
    st.sampled_from(PRECISIONS),
    st.sampled_from(CELLS),
    st.sampled_from(HIDDEN_SIZES),
    st.integers(1, 17),
    st.integers(0, 2**16),
)
@settings(deadline=None, max_examples=50)
def test_a_row_is_the_same_at_every_position_of_a_batch(
    precision: Precision, cell: str, hidden_size: int, batch: int, seed: int
) -> None:
    model, onnx_model = precise_models(precision, cell, 2, hidden_size)
    tokens, targets, states = random_inputs(model, np.random.default_rng(seed), 1, 6)
    _, alone, _ = onnx_model.run(tokens, targets, states)
    copies = [np.repeat(x, batch, axis=0) for x in states]
    _, many, _ = onnx_model.run(
        np.repeat(tokens, batch, axis=0), np.repeat(targets, batch, axis=0), copies
    )
    assert all(np.array_equal(row, alone[0]) for row in many)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_a_row_of_many_units_is_the_same_alone_in_chunks_and_among_others(
    precision: Precision, cell: str
) -> None:
    model, onnx_model = precise_models(precision, cell, 1, MANY_UNITS)
    tokens, targets, states = random_inputs(model, np.random.default_rng(5), 65, 4)
    ends = np.resize(np.array([4, 1, 3], np.int32), 65)
    _, whole, after = onnx_model.run(tokens, targets, states, ends)
    for row in (0, 1, 31, 62, 63, 64):
        only = slice(row, row + 1)
        current = [state[only] for state in states]
        for t in range(ends[row]):
            now = slice(t, t + 1)
            _, alone, current = onnx_model.run(tokens[only, now], targets[only, now], current)
            assert np.array_equal(alone[0, 0], whole[row, t])
        assert all(np.array_equal(x[only], y) for x, y in zip(after, current, strict=True))


# --- the file -----------------------------------------------------------------------------------


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes_of(attribute.g)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_a_graph_has_operators_of_the_default_domain_and_no_external_data(
    cell: str, num_layers: int, kind: Kind
) -> None:
    model = tiny_model(cell=cell, num_layers=num_layers)
    proto = onnx.load_model_from_string(onnx_graph.build(model, *kind))
    assert [(x.domain, x.version) for x in proto.opset_import] == [("", OPSET)]
    assert {node.domain for node in nodes_of(proto.graph)} == {""}
    assert not proto.functions
    assert {x.data_location for x in proto.graph.initializer} == {onnx.TensorProto.DEFAULT}
    taken = {name for node in nodes_of(proto.graph) for name in node.input}
    assert {x.name for x in proto.graph.initializer} <= taken  # onnxruntime warns of others


def shapes(values: Any) -> dict[str, list[str | int]]:
    return {
        x.name: [d.dim_param or d.dim_value for d in x.type.tensor_type.shape.dim] for x in values
    }


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_batch_and_time_are_free_and_every_state_comes_back(
    cell: str, precision: Precision
) -> None:
    model = tiny_model(cell=cell, num_layers=2)
    graph = onnx.load_model_from_string(onnx_graph.build(model, precision)).graph
    assert shapes(graph.input) == {
        "tokens": ["B", "T"],
        "lengths": ["B"],
        "targets": ["B", "T"],
        **{name: ["B", 8] for name in model.state_names},
    }
    assert shapes(graph.output) == {
        "target_logprobs": ["B", "T"],
        "logprobs": ["B", "T", 11],
        **{f"{name}_out": ["B", 8] for name in model.state_names},
    }


@pytest.mark.parametrize("cell", CELLS)
def test_a_step_takes_a_token_a_row_and_gives_its_states_back(cell: str) -> None:
    model = tiny_model(cell=cell, num_layers=2)
    graph = onnx.load_model_from_string(onnx_graph.build(model, "int8", "step")).graph
    states: dict[str, list[str | int]] = {name: ["B", 8] for name in model.state_names}
    assert shapes(graph.input) == {"tokens": ["B"], **states}
    assert shapes(graph.output) == {
        "logprobs": ["B", 11],
        **{f"{name}_out": shape for name, shape in states.items()},
    }


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_the_same_weights_give_the_same_bytes(kind: Kind) -> None:
    model = tiny_model(num_layers=2)
    assert onnx_graph.build(model, *kind) == onnx_graph.build(model, *kind)


# --- eight bits -----------------------------------------------------------------------------------


@cache
def int8_models(
    cell: str, num_layers: int, hidden_size: int = 33
) -> tuple[LanguageModel, OnnxLanguageModel, OnnxLanguageModel]:
    """The model of `models`, and its two int8 graphs; the second is the step graph."""
    model, _ = models(cell, num_layers, hidden_size)
    sequence, step = (
        OnnxLanguageModel.load(onnx_graph.build(model, "int8", role), model.state_names)
        for role in onnx_graph.ROLES["int8"]
    )
    return model, sequence, step


def stepped(
    step: OnnxLanguageModel, tokens: Ids, states: States
) -> tuple[npt.NDArray[np.float32], States]:
    """The step graph over `tokens` [B, T]: log p [B, T, V] and the states after."""
    columns = []
    for t in range(tokens.shape[1]):
        feeds = {"tokens": tokens[:, t], **dict(zip(step.state_names, states, strict=True))}
        logprobs, *states = step.session.run(None, feeds)
        columns.append(logprobs)
    return np.stack(columns, axis=1), states


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("hidden_size", HIDDEN_SIZES)
def test_the_int8_graph_is_the_reference_but_for_roundings(
    cell: str, num_layers: int, hidden_size: int
) -> None:
    model, sequence, _ = int8_models(cell, num_layers, hidden_size)
    tokens, targets, states = random_inputs(model, np.random.default_rng(2), 5, 20)
    _, logprobs, after = sequence.run(tokens, targets, states)
    wanted, wanted_after = reference_logprobs(
        model, torch.from_numpy(tokens), [torch.from_numpy(x) for x in states]
    )
    # Where a state lies in the middle between two steps the two may part; hardly anywhere.
    assert np.median(np.abs(logprobs - wanted.numpy())) < 2e-6
    assert np.abs(logprobs - wanted.numpy()).mean() < 2e-3
    for state, exact in zip(after, wanted_after, strict=True):
        assert np.median(np.abs(state - exact.numpy())) < 2e-6


@pytest.mark.parametrize("cell", CELLS)
def test_the_int8_graph_is_near_the_fp32_graph(cell: str) -> None:
    model, sequence, _ = int8_models(cell, 2, 96)
    _, fp32 = models(cell, 2, 96)
    tokens, targets, _ = random_inputs(model, np.random.default_rng(3), 5, 20)
    zeros = [x.numpy() for x in model.initial_states(5)]
    quantized, exact = (x.run(tokens, targets, zeros)[0] for x in (sequence, fp32))
    assert 1e-6 < np.abs(quantized - exact).mean() < 0.05


@settings(max_examples=40, deadline=None)
@given(
    kind=st.tuples(st.sampled_from(CELLS), st.integers(1, 2), st.sampled_from(HIDDEN_SIZES)),
    batch=st.integers(1, 40),
    time=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
)
def test_stepping_is_reading_bit_for_bit(
    kind: tuple[str, int, int], batch: int, time: int, seed: int
) -> None:
    model, sequence, step = int8_models(*kind)
    tokens, targets, states = random_inputs(model, np.random.default_rng(seed), batch, time)
    _, read, after = sequence.run(tokens, targets, states)
    written, states_after = stepped(step, tokens, states)
    assert read.tobytes() == written.tobytes()
    assert [x.tobytes() for x in after] == [x.tobytes() for x in states_after]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    ("num_layers", "hidden_size", "time"), [(3, 33, 3), (1, MANY_UNITS, 3), (1, 33, 60)]
)
def test_steps_of_any_number_of_rows_are_the_sequence_graphs(
    cell: str, num_layers: int, hidden_size: int, time: int
) -> None:
    model, sequence, step = int8_models(cell, num_layers, hidden_size)
    for batch in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 128, 129):
        tokens, targets, states = random_inputs(model, np.random.default_rng(batch), batch, time)
        _, read, after = sequence.run(tokens, targets, states)
        written, states_after = stepped(step, tokens, states)
        assert np.array_equal(read, written)
        assert all(map(np.array_equal, after, states_after))


def peeking(graph: bytes, *names: str) -> onnxruntime.InferenceSession:
    """The graph with values inside it as outputs."""
    proto = onnx.load_model_from_string(graph)
    for name in names:
        proto.graph.output.append(onnx.ValueInfoProto(name=name))
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )


@pytest.mark.parametrize("cell", CELLS)
def test_products_inside_the_graph_are_exact_sums_of_small_integers(cell: str) -> None:
    """Weights and states at their extremes, where pairs of products are largest."""
    model = tiny_model(V, cell=cell, num_layers=1, hidden_size=MANY_UNITS)
    signs = np.resize(
        np.array([1.0, 1.0, -1.0], np.float32), model.recurrent_layers[0].weight_hh.T.shape
    )
    with torch.no_grad():
        model.recurrent_layers[0].weight_hh.copy_(torch.from_numpy(signs.T.copy()))
    graph = onnx_graph.build(model, "int8", "step")
    session = peeking(graph, "h0_steps", "recurrent0_integers")
    rng = np.random.default_rng(6)
    h = rng.uniform(-1, 1, (4, MANY_UNITS)).astype(np.float32)
    h[0], h[1] = 1.0, -1.0
    h[2] = np.where(signs[:, 0] > 0, 1.0, -1.0)  # the largest sum that there is
    feeds = {name: np.zeros_like(h) for name in model.state_names} | {"h0": h}
    feeds["tokens"] = np.array([1, 5, 6, 7])
    *_, steps, sums = session.run(None, feeds)
    assert steps.dtype == np.uint8
    assert (steps.min(), steps.max()) == (1, 127)
    assert np.array_equal(steps, np.rint(h.astype(np.float64) * 63) + 64)
    wanted = (steps.astype(np.int64) - 64) @ (127 * signs.astype(np.int64))
    assert np.array_equal(sums, wanted)
    assert sums[2, 0] == MANY_UNITS * 63 * 127


@pytest.mark.parametrize("cell", CELLS)
def test_saturated_gates_stay_exact_in_int8(cell: str) -> None:
    model, _ = models(cell, 2, 33)
    with torch.random.fork_rng():
        loud = tiny_model(V, cell=cell, num_layers=2, hidden_size=33, embedding_dim=9)
    loud.load_state_dict({name: 40.0 * x for name, x in model.state_dict().items()})
    sequence = OnnxLanguageModel.load(onnx_graph.build(loud, "int8", "sequence"), loud.state_names)
    tokens, targets, _ = random_inputs(loud, np.random.default_rng(4), 9, 30)
    zeros = [x.numpy() for x in loud.initial_states(9)]
    _, logprobs, after = sequence.run(tokens, targets, zeros)
    assert np.isfinite(logprobs).all()
    hidden = [x for name, x in zip(loud.state_names, after, strict=True) if name.startswith("h")]
    # Single precision's tanh can pass 1 by a rounding; a step of h is 1 / 63.
    assert all(np.abs(x).max() <= 1.0 + 1e-6 for x in hidden)
    _, alone, _ = sequence.run(tokens[4:5], targets[4:5], [x[:1] for x in zeros])
    assert alone.tobytes() == logprobs[4:5].tobytes()
    wanted, wanted_after = reference_logprobs(
        loud, torch.from_numpy(tokens), loud.initial_states(9)
    )
    # A saturated gate leaves nothing to round; the scale is that of log-probabilities of -100.
    assert np.median(np.abs(logprobs - wanted.numpy())) < 1e-4
    for state, exact in zip(after, wanted_after, strict=True):
        assert np.median(np.abs(state - exact.numpy())) < 1e-5
    step = OnnxLanguageModel.load(onnx_graph.build(loud, "int8", "step"), loud.state_names)
    written, states_after = stepped(step, tokens, zeros)
    assert written.tobytes() == logprobs.tobytes()
    # Equal but not in bytes: a closed gate makes -0.0, which onnxruntime's Where turns into 0.0.
    assert all(map(np.array_equal, states_after, after))


def test_there_is_no_step_graph_in_fp32() -> None:
    model, _ = models("lstm", 1)
    with pytest.raises(ValueError, match="there is no step graph in fp32"):
        onnx_graph.build(model, "fp32", "step")
