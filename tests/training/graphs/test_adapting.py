"""The adapting graphs: the numbers of the formulas, and every row the same bit by bit."""

from functools import cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.helpers import tiny_model
from training.export.precision import MAX_DIFFERENCE, in_double
from training.export.sessions import open_session
from training.graphs import adapting as adapting_graph
from training.networks.adapting import Adaptation, Adapting
from training.networks.language_model import LanguageModel
from training.networks.mixture import AnyLanguageModel, Mixture

V = 37
HIDDEN = 33
Floats: TypeAlias = npt.NDArray[np.float32]
States: TypeAlias = dict[str, Floats]
KINDS = [(None, 0.0, 1), (7, 0.0, 1), (16, 0.02, 1), (None, 0.02, 2), (5, 0.0, 2)]


class Graphs:
    """A model that adapts, and its graphs fed with what its networks give."""

    def __init__(self, rank: int | None, decay: float, networks: int) -> None:
        rng = np.random.default_rng(networks)
        models = [network(seed) for seed in range(networks)]
        self.model: AnyLanguageModel = models[0]
        if networks > 1:
            self.model = Mixture(models, None, [1.0 / networks] * networks, 1.0).eval()
        self.adaptation = Adaptation(
            rate=0.3,
            decay=decay,
            projections=[projection(rng, rank) for _ in models],
            scales=[1.1] * networks,
            weights=[0.7, 0.3] if networks > 1 else [1.0],
            exponent=1.2 if networks > 1 else 1.0,
        )
        self.sequence, self.step = (
            open_session(adapting_graph.build(self.model, self.adaptation, role))
            for role in ("adapt", "adapt_step")
        )

    def zeros(self, rows: int) -> States:
        shapes = adapting_graph.state_shapes(self.model, self.adaptation)
        return {name: np.zeros((rows, *shape), np.float32) for name, shape in shapes.items()}

    def features(self, tokens: npt.NDArray[np.int64]) -> States:
        """What the model's own graph gives, [B, T, .]."""
        found: States = {}
        with torch.no_grad():
            for i, own in enumerate(self.model.networks):
                zeros = own.initial_states(len(tokens))
                hidden, _ = own.outputs(torch.from_numpy(tokens), zeros)
                found[f"hidden{i}"] = np.ascontiguousarray(hidden.numpy())
                found[f"logits{i}"] = np.ascontiguousarray(own.output(hidden).numpy())
        return found

    def read(
        self,
        tokens: npt.NDArray[np.int64],
        features: States,
        states: States,
        lengths: npt.NDArray[np.int32] | None = None,
    ) -> tuple[Floats, States]:
        """log p [B, T, V], and the states after."""
        if lengths is None:
            lengths = np.full(len(tokens), tokens.shape[1], np.int32)
        called = {"tokens": tokens, "lengths": lengths, "targets": tokens}
        return self._run(self.sequence, {**features, **states, **called})

    def read_token(
        self, tokens: npt.NDArray[np.int64], features: States, states: States
    ) -> tuple[Floats, States]:
        """log p [B, V] after a token in every row, and the states after."""
        return self._run(self.step, {**features, **states, "tokens": tokens})

    def _run(
        self, session: onnxruntime.InferenceSession, feeds: dict[str, Any]
    ) -> tuple[Floats, States]:
        names = list(self.zeros(1))
        logprobs, *after = session.run(["logprobs", *(f"{name}_out" for name in names)], feeds)
        return logprobs, dict(zip(names, after, strict=True))


def network(seed: int) -> LanguageModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = tiny_model(V, hidden_size=HIDDEN, embedding_dim=9)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def projection(rng: np.random.Generator, rank: int | None) -> Floats | None:
    if rank is None:
        return None
    found: Floats = (rng.standard_normal((rank, HIDDEN)) / np.sqrt(HIDDEN)).astype(np.float32)
    return found


@cache
def graphs(rank: int | None, decay: float, networks: int) -> Graphs:
    return Graphs(rank, decay, networks)


def piece(values: States, rows: slice, times: slice) -> States:
    return {name: value[rows, times] for name, value in values.items()}


def same(found: States, wanted: States) -> bool:
    return all(np.array_equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 70), (5, 40)])
def test_log_probabilities_are_those_of_the_formulas(
    kind: tuple[int | None, float, int], shape: tuple[int, int]
) -> None:
    own = graphs(*kind)
    tokens = np.random.default_rng(1).integers(0, V, shape)
    exact = in_double(Adapting(own.model, own.adaptation))
    with torch.no_grad():
        wanted, _ = exact(torch.from_numpy(tokens), exact.initial_states(len(tokens)))
    found, _ = own.read(tokens, own.features(tokens), own.zeros(len(tokens)))
    np.testing.assert_allclose(found, wanted.numpy(), rtol=0, atol=MAX_DIFFERENCE)


def test_it_adapts() -> None:
    own = graphs(None, 0.0, 1)
    tokens = np.resize(np.random.default_rng(2).integers(0, V, 8), (1, 120))
    found, _ = own.read(tokens, own.features(tokens), own.zeros(1))
    own_logprobs = np.take_along_axis(found[:, :-1], tokens[:, 1:, None], 2)
    assert own_logprobs[:, -8:].mean() > own_logprobs[:, :8].mean() + 1.0


@given(st.sampled_from(KINDS), st.integers(1, 39), st.integers(0, 2**16))
@settings(deadline=None, max_examples=40)
def test_a_token_is_scored_before_it_is_learned_from(
    kind: tuple[int | None, float, int], change: int, seed: int
) -> None:
    own = graphs(*kind)
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, V, (2, 40))
    features = own.features(tokens)
    changed = tokens.copy()
    changed[:, change:] = rng.integers(0, V, changed[:, change:].shape)
    moved = {name: value.copy() for name, value in features.items()}
    for value in moved.values():
        value[:, change:] = rng.standard_normal(value[:, change:].shape)
    before, _ = own.read(tokens, features, own.zeros(2))
    after, _ = own.read(changed, moved, own.zeros(2))
    assert np.array_equal(before[:, :change], after[:, :change])


@given(
    st.sampled_from(KINDS),
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=9),
    st.integers(0, 2**16),
)
@settings(deadline=None, max_examples=60)
def test_a_row_is_the_same_alone_and_among_rows_that_began_elsewhere(
    kind: tuple[int | None, float, int], lengths: list[tuple[int, int]], seed: int
) -> None:
    own = graphs(*kind)
    rows = len(lengths)
    first, second = (np.array(x, np.int32) for x in zip(*lengths, strict=True))
    rng = np.random.default_rng(seed)
    states = own.zeros(rows)
    alone = [own.zeros(1) for _ in range(rows)]
    for ends in (first, second):
        tokens = rng.integers(0, V, (rows, max(1, int(ends.max()))))
        features = own.features(tokens)
        logprobs, states = own.read(tokens, features, states, ends)
        for row, end in enumerate(ends):
            only = slice(row, row + 1)
            if end:
                cut = piece(features, only, slice(0, end))
                wanted, alone[row] = own.read(tokens[only, :end], cut, alone[row])
                assert np.array_equal(logprobs[only, :end], wanted)
            assert same({name: value[only] for name, value in states.items()}, alone[row])


@given(
    st.sampled_from(KINDS),
    st.lists(st.integers(1, 35), min_size=2, max_size=5),
    st.integers(1, 4),
    st.integers(0, 2**16),
)
@settings(deadline=None, max_examples=40)
def test_pieces_and_steps_are_one_call(
    kind: tuple[int | None, float, int], pieces: list[int], rows: int, seed: int
) -> None:
    own = graphs(*kind)
    tokens = np.random.default_rng(seed).integers(0, V, (rows, sum(pieces)))
    features = own.features(tokens)
    wanted, wanted_after = own.read(tokens, features, own.zeros(rows))
    states, start = own.zeros(rows), 0
    for size in pieces:
        times = slice(start, start + size)
        found, states = own.read(tokens[:, times], piece(features, slice(None), times), states)
        assert np.array_equal(found, wanted[:, times])
        start += size
    assert same(states, wanted_after)
    states = own.zeros(rows)
    for t in range(tokens.shape[1]):
        now = {name: value[:, t] for name, value in features.items()}
        found, states = own.read_token(tokens[:, t], now, states)
        assert np.array_equal(found, wanted[:, t])
    assert same(states, wanted_after)
