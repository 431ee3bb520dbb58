"""Eight-bit weights and seven-bit states: what they are, and a forward pass from the formulas."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.training.helpers import tiny_model
from training.graphs.language_model_reference import reference_logprobs
from training.graphs.quantization import (
    STATE_STEPS,
    STATE_ZERO,
    QuantizedMatrix,
    input_bias,
    input_table,
)
from training.networks.language_model import LanguageModel
from training.networks.recurrent import STATE_NAMES

CELLS = ("rnn", "gru", "lstm")
V = 19
Array = npt.NDArray[np.float64]


def model_of(cell: str, num_layers: int) -> LanguageModel:
    with torch.random.fork_rng():
        torch.manual_seed(num_layers)
        model = tiny_model(V, cell=cell, num_layers=num_layers, hidden_size=11, embedding_dim=5)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


weights = st.lists(
    st.lists(st.floats(-100.0, 100.0, width=32), min_size=3, max_size=3), min_size=1, max_size=9
).map(lambda rows: np.array(rows, np.float32))


# 185 of the smallest numbers: a 127th of that rounds to one of them, and 185 steps do not fit.
SUBNORMAL = np.array([[1e-45, 2e-43, 0.0], [0.0, 2.6e-43, 1e-38]], np.float32)


@settings(max_examples=100, deadline=None)
@given(weight=weights)
@example(weight=SUBNORMAL)
def test_a_weight_lies_at_most_half_a_step_from_what_stands_for_it(
    weight: npt.NDArray[np.float32],
) -> None:
    matrix = QuantizedMatrix.of(weight)
    assert matrix.values.dtype == np.int8
    assert np.abs(matrix.values.astype(int)).max() <= 127
    restored = matrix.values.astype(np.float64) * matrix.scale
    assert (np.abs(restored - weight) <= 0.5001 * matrix.scale).all()


def test_the_largest_weight_of_a_column_takes_the_last_step_and_zeros_stay_zeros() -> None:
    matrix = QuantizedMatrix.of(np.array([[2.0, 0.0], [-4.0, 0.0]], np.float32))
    assert matrix.values.tolist() == [[64, 0], [-127, 0]]
    assert matrix.scale.tolist() == pytest.approx([4.0 / 127.0, 1.0])


@settings(max_examples=100, deadline=None)
@given(h=st.floats(-1.0, 1.0))
def test_a_state_is_an_integer_of_seven_bits(h: float) -> None:
    steps = np.rint(h * STATE_STEPS) + STATE_ZERO
    assert 1 <= steps <= 127
    # Products of 8 bits are added in pairs of 16 where there is nothing better.
    assert 2 * steps * 127 < 2**15


@pytest.mark.parametrize("cell", CELLS)
def test_the_table_is_the_first_layers_input_product_and_biases(cell: str) -> None:
    model = model_of(cell, 1)
    layer = model.recurrent_layers[0]
    with torch.no_grad():
        product = model.embedding.weight.double() @ layer.weight_ih.double().T
        total = product + layer.bias_ih.double() + layer.bias_hh.double()
        if cell == "gru":
            total[:, 22:] -= layer.bias_hh.double()[22:]  # the candidate's is scaled by a gate
    np.testing.assert_allclose(input_table(model), total.numpy(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(
        input_bias(cell, layer), (total - product)[0].numpy(), rtol=1e-6, atol=1e-6
    )


def sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-x))


def rounded(weight: Array) -> Array:
    """The nearest of 255 multiples, a column."""
    scale = np.abs(weight).max(axis=0) / 127.0
    single = scale.astype(np.float32)
    restored: Array = np.rint(weight / single) * single
    return restored


def naive(model: LanguageModel, ids: list[int]) -> Array:
    """log p [T, V] after each id, from the zero state: loops over torch's formulas."""
    cell = model.config.cell
    size = model.config.hidden_size

    def parameter(tensor: torch.Tensor) -> Array:
        return tensor.detach().double().numpy()

    states = [{name: np.zeros(size) for name in STATE_NAMES[cell]} for _ in model.recurrent_layers]
    rows = []
    for token in ids:
        x = parameter(model.embedding.weight)[token]
        for i, (layer, state) in enumerate(zip(model.recurrent_layers, states, strict=True)):
            w_x, w_h = parameter(layer.weight_ih).T, parameter(layer.weight_hh).T
            b_x, b_h = parameter(layer.bias_ih), parameter(layer.bias_hh)
            h = np.rint(state["h"] * 63) / 63
            if i == 0:
                from_input, w_h = x @ w_x + b_x, rounded(w_h)
            else:
                if cell == "gru":
                    w_x, w_h = rounded(w_x), rounded(w_h)
                else:
                    both = rounded(np.concatenate([w_x, w_h]))
                    w_x, w_h = both[: len(w_x)], both[len(w_x) :]
                from_input = (np.rint(x * 63) / 63) @ w_x + b_x
            from_state = h @ w_h + b_h
            if cell == "rnn":
                state["h"] = np.tanh(from_input + from_state)
            elif cell == "gru":
                (r_x, z_x, n_x), (r_h, z_h, n_h) = (
                    np.split(y, 3) for y in (from_input, from_state)
                )
                r, z = sigmoid(r_x + r_h), sigmoid(z_x + z_h)
                state["h"] = (1 - z) * np.tanh(n_x + r * n_h) + z * state["h"]
            else:
                i_, f, g, o = np.split(from_input + from_state, 4)
                state["c"] = sigmoid(f) * state["c"] + sigmoid(i_) * np.tanh(g)
                state["h"] = sigmoid(o) * np.tanh(state["c"])
            x = state["h"]
        logits = parameter(model.output.weight) @ x + parameter(model.output.bias)
        rows.append(logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max())
    return np.stack(rows)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_the_reference_is_a_loop_over_the_formulas(cell: str, num_layers: int) -> None:
    model = model_of(cell, num_layers)
    ids = np.random.default_rng(1).integers(0, V, 24).tolist()
    found, _ = reference_logprobs(model, torch.tensor([ids]), model.initial_states(1))
    wanted = naive(model, ids)
    # The table and the scales are single precision here and there: hardly a step differs.
    assert np.median(np.abs(found[0].numpy() - wanted)) < 1e-5
    np.testing.assert_allclose(found[0].numpy(), wanted, atol=0.05)


@pytest.mark.parametrize("cell", CELLS)
def test_the_reference_reads_rows_apart_and_goes_on_from_its_states(cell: str) -> None:
    model = model_of(cell, 2)
    tokens = torch.from_numpy(np.random.default_rng(2).integers(0, V, (3, 10)))
    whole, after = reference_logprobs(model, tokens, model.initial_states(3))
    first, states = reference_logprobs(model, tokens[:, :4], model.initial_states(3))
    second, end = reference_logprobs(model, tokens[:, 4:], states)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    for state, wanted in zip(end, after, strict=True):
        torch.testing.assert_close(state, wanted)
    alone, _ = reference_logprobs(model, tokens[1:2], model.initial_states(1))
    torch.testing.assert_close(alone, whole[1:2])
