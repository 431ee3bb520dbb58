"""A recurrent layer's parameters as they start; its outputs are tested with the models."""

import pytest
import torch

from training.networks.recurrent import GATES, RecurrentLayer, RecurrentLayers

H, E = 8, 5  # hidden, embedding

each_cell = pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])


@each_cell
def test_every_gates_recurrent_matrix_starts_orthogonal(cell: str) -> None:
    layer = RecurrentLayer(cell, E, H)
    for matrix in torch.split(layer.weight_hh.detach(), H):
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(H), atol=1e-5, rtol=0)


def test_gates_do_not_start_with_the_same_matrix() -> None:
    first, second, *_ = torch.split(RecurrentLayer("lstm", E, H).weight_hh.detach(), H)
    assert not torch.allclose(first, second)


def test_an_lstms_forget_bias_starts_at_one_and_the_others_at_zero() -> None:
    layer = RecurrentLayer("lstm", E, H)
    total = layer.bias_ih + layer.bias_hh
    assert [set(gate.tolist()) for gate in torch.split(total, H)] == [{0.0}, {1.0}, {0.0}, {0.0}]


@pytest.mark.parametrize("cell", ["rnn", "gru"])
def test_other_cells_biases_start_at_zero(cell: str) -> None:
    layer = RecurrentLayer(cell, E, H)
    assert not torch.cat([layer.bias_ih, layer.bias_hh]).any()


@each_cell
def test_a_layer_holds_its_cells_gates(cell: str) -> None:
    assert RecurrentLayer(cell, E, H).weight_ih.shape == (GATES[cell] * H, E)


def test_every_layer_but_the_first_reads_the_one_below() -> None:
    layers = RecurrentLayers("lstm", E, H, 3).recurrent_layers
    assert [layer.weight_ih.shape[1] for layer in layers] == [E, H, H]


def test_states_are_named_layer_by_layer() -> None:
    assert RecurrentLayers("lstm", E, H, 2).state_names == ["h0", "c0", "h1", "c1"]
    assert RecurrentLayers("gru", E, H, 2).state_names == ["h0", "h1"]
