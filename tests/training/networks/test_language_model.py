"""The recurrent language model against torch's own modules, and its regularization."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.training.helpers import tiny_model
from training.networks.language_model import LanguageModel

CELLS = ("rnn", "gru", "lstm")
LAYERS = (1, 2, 3)
V, B, T, H, E = 11, 3, 7, 8, 5  # vocabulary, batch, time, hidden, embedding

each_cell = pytest.mark.parametrize("cell", CELLS)
each_depth = pytest.mark.parametrize("num_layers", LAYERS)


def tokens(batch: int = B, time: int = T) -> Tensor:
    return torch.randint(0, V, (batch, time), generator=torch.Generator().manual_seed(1))


def random_states(model: LanguageModel, batch: int = B) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.rand(batch, H, generator=generator) - 0.5 for _ in model.state_names]


def torch_module(model: LanguageModel) -> nn.RNNBase:
    """torch's own module with the same weights."""
    kind = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[model.config.cell]
    module: nn.RNNBase = kind(E, H, model.config.num_layers)
    weights = {
        f"{name}_l{i}": weight
        for i, layer in enumerate(model.recurrent_layers)
        for name, weight in layer.named_parameters()
    }
    module.load_state_dict(weights)
    return module


class Inputs:
    """What every layer of a model was given in one call, and its embeddings."""

    def __init__(self, model: LanguageModel) -> None:
        self.layers: list[Tensor] = []  # [T, B, E or H] each
        self.outputs: list[Tensor] = []  # [T, B, H] each
        self.weight_masks: list[Tensor | None] = []
        self.output = torch.empty(0)  # [T, B, H]
        self.embedded = torch.empty(0)  # [T, B, E]
        model.embedding.register_forward_hook(self._after_embedding)
        model.output.register_forward_pre_hook(self._before_output)
        for layer in model.recurrent_layers:
            layer.register_forward_hook(self._after_layer)

    def _after_embedding(self, _: nn.Module, __: object, outputs: Tensor) -> None:
        self.embedded = outputs.detach()

    def _before_output(self, _: nn.Module, arguments: tuple[Tensor]) -> None:
        self.output = arguments[0].detach()

    def _after_layer(
        self, _: nn.Module, arguments: tuple[Tensor, Any, Tensor | None], outputs: tuple[Tensor]
    ) -> None:
        self.layers.append(arguments[0].detach())
        self.weight_masks.append(arguments[2])
        self.outputs.append(outputs[0].detach())


# --- forward ------------------------------------------------------------------------------------


@each_cell
@each_depth
def test_shapes_are_batch_first(cell: str, num_layers: int) -> None:
    model = tiny_model(V, cell=cell, num_layers=num_layers)
    logits, states = model(tokens(), model.initial_states(B))
    assert logits.shape == (B, T, V)
    assert [state.shape for state in states] == [(B, H)] * len(model.state_names)


def test_an_lstm_has_two_states_a_layer_and_the_others_one() -> None:
    names = {cell: tiny_model(cell=cell, num_layers=2).state_names for cell in CELLS}
    assert names == {"rnn": ["h0", "h1"], "gru": ["h0", "h1"], "lstm": ["h0", "c0", "h1", "c1"]}


@each_cell
@each_depth
def test_logits_and_states_are_those_of_torchs_own_module(cell: str, num_layers: int) -> None:
    model = tiny_model(V, cell=cell, num_layers=num_layers)
    states = random_states(model)
    logits, after = model(tokens(), states)
    embedded = model.embedding(tokens()).transpose(0, 1)  # [T, B, E]
    if cell == "lstm":
        initial = torch.stack(states[0::2]), torch.stack(states[1::2])  # [L, B, H] each
        outputs, (h, c) = torch_module(model)(embedded, initial)
        wanted = [x for pair in zip(h, c, strict=True) for x in pair]
    else:
        outputs, h = torch_module(model)(embedded, torch.stack(states))
        wanted = list(h)
    torch.testing.assert_close(logits, model.output(outputs).transpose(0, 1))
    for found, expected in zip(after, wanted, strict=True):
        torch.testing.assert_close(found, expected)


@each_cell
@each_depth
def test_two_windows_with_the_state_carried_are_one_long_window(cell: str, num_layers: int) -> None:
    model = tiny_model(V, cell=cell, num_layers=num_layers)
    whole, whole_states = model(tokens(), model.initial_states(B))
    first, states = model(tokens()[:, :3], model.initial_states(B))
    second, states = model(tokens()[:, 3:], states)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(states, whole_states)


@each_cell
def test_every_state_tensor_matters(cell: str) -> None:
    model = tiny_model(V, cell=cell, num_layers=2)
    zeros = list(model.initial_states(1))
    before, _ = model(tokens(1), zeros)
    for i in range(len(zeros)):
        changed = [*zeros[:i], zeros[i] + 0.5, *zeros[i + 1 :]]
        assert not torch.allclose(model(tokens(1), changed)[0], before)


def test_initial_states_are_zeros_of_their_own() -> None:
    states = tiny_model().initial_states(2)
    states[0][0, 0] = 1.0
    assert [float(state.sum()) for state in states] == [1.0, 0.0]


# --- tied embeddings ----------------------------------------------------------------------------


def test_tied_embeddings_are_one_tensor() -> None:
    model = tiny_model(V, tie_embeddings=True, embedding_dim=H)
    with torch.no_grad():
        model.embedding.weight[4] = 7.0
    assert model.output.weight[4].tolist() == [7.0] * H
    assert model.output.weight.data_ptr() == model.embedding.weight.data_ptr()


def test_tied_embeddings_stay_one_tensor_when_weights_are_loaded() -> None:
    model, other = (tiny_model(V, tie_embeddings=True, embedding_dim=H) for _ in range(2))
    model.load_state_dict(other.state_dict())
    assert model.output.weight.data_ptr() == model.embedding.weight.data_ptr()
    assert torch.equal(model.output.weight, other.embedding.weight)


def test_untied_embeddings_are_two_tensors() -> None:
    model = tiny_model(V, embedding_dim=H)
    assert model.output.weight.data_ptr() != model.embedding.weight.data_ptr()


# --- dropout ------------------------------------------------------------------------------------


def mask_of(dropped: Tensor, whole: Tensor) -> Tensor:
    """[T, B, D] the factor by which dropout scaled each element."""
    return dropped / whole


def assert_locked(mask: Tensor, probability: float) -> None:
    """[T, B, D]: one mask for all time steps, another for every row, zeros or the inverse."""
    torch.testing.assert_close(mask, mask[:1].expand_as(mask))
    values = sorted({round(x, 4) for x in mask.flatten().tolist()})
    assert values == [0.0, round(1.0 / (1.0 - probability), 4)]
    assert not torch.equal(mask[0, 0], mask[0, 1])


def test_dropout_on_the_embeddings_is_locked_over_time() -> None:
    model = tiny_model(V, embedding_dim=40, dropout_input=0.25).train()
    seen = Inputs(model)
    model(tokens(), model.initial_states(B), torch.Generator().manual_seed(1))
    assert_locked(mask_of(seen.layers[0], seen.embedded), 0.25)


def test_dropout_between_layers_is_locked_over_time() -> None:
    model = tiny_model(V, hidden_size=40, num_layers=3, dropout_between=0.5).train()
    seen = Inputs(model)
    model(tokens(), model.initial_states(B), torch.Generator().manual_seed(1))
    assert_locked(mask_of(seen.layers[1], seen.outputs[0]), 0.5)
    assert_locked(mask_of(seen.layers[2], seen.outputs[1]), 0.5)
    assert torch.equal(seen.output, seen.outputs[2])


def test_dropout_before_the_output_is_locked_over_time() -> None:
    model = tiny_model(V, hidden_size=40, num_layers=2, dropout_output=0.5).train()
    seen = Inputs(model)
    model(tokens(), model.initial_states(B), torch.Generator().manual_seed(1))
    assert_locked(mask_of(seen.output, seen.outputs[1]), 0.5)
    assert torch.equal(seen.layers[1], seen.outputs[0])


def test_dropout_drops_with_its_probability() -> None:
    model = tiny_model(V, embedding_dim=400, dropout_input=0.2).train()
    seen = Inputs(model)
    model(tokens(50, 1), model.initial_states(50), torch.Generator().manual_seed(1))
    dropped = float((seen.layers[0] == 0).float().mean())
    assert abs(dropped - 0.2) < 0.01  # 20,000 draws: 3.5 standard deviations


@each_cell
def test_weight_drop_is_one_mask_for_the_whole_window(cell: str) -> None:
    model = tiny_model(V, cell=cell, num_layers=2, weight_drop=0.5).train()
    seen = Inputs(model)
    states = random_states(model)
    dropped, after = model(tokens(), states, torch.Generator().manual_seed(1))
    with torch.no_grad():
        for layer, mask in zip(model.recurrent_layers, seen.weight_masks, strict=True):
            assert mask is not None
            assert set(mask.flatten().tolist()) == {0.0, 2.0}
            layer.weight_hh.mul_(mask)
    wanted, wanted_after = model.eval()(tokens(), states)
    torch.testing.assert_close(dropped, wanted)
    torch.testing.assert_close(after, wanted_after)


def test_weight_drop_leaves_the_weights_as_they_are() -> None:
    model = tiny_model(V, weight_drop=0.5).train()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    model(tokens(), model.initial_states(B))
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_no_gradient_reaches_a_dropped_weight() -> None:
    model = tiny_model(V, weight_drop=0.5).train()
    seen = Inputs(model)
    model(tokens(), random_states(model))[0].sum().backward()
    gradient, mask = model.recurrent_layers[0].weight_hh.grad, seen.weight_masks[0]
    assert gradient is not None
    assert mask is not None
    assert torch.equal(gradient == 0, mask == 0)


REGULARIZED = {
    "num_layers": 2,
    "dropout_input": 0.3,
    "dropout_between": 0.3,
    "dropout_output": 0.3,
    "weight_drop": 0.3,
}


@each_cell
def test_evaluation_drops_nothing(cell: str) -> None:
    model = tiny_model(V, cell=cell, **REGULARIZED)
    plain = tiny_model(V, cell=cell, num_layers=2)
    plain.load_state_dict(model.state_dict())
    states = random_states(model)
    assert torch.equal(model(tokens(), states)[0], plain(tokens(), states)[0])


def test_a_generator_decides_every_mask() -> None:
    model = tiny_model(V, **REGULARIZED).train()
    states = random_states(model)

    def logits(seed: int) -> Tensor:
        found: Tensor = model(tokens(), states, torch.Generator().manual_seed(seed))[0]
        torch.rand(1)  # torch's own generator moves on, and does not matter
        return found

    assert torch.equal(logits(1), logits(1))
    assert not torch.equal(logits(1), logits(2))


def test_every_window_has_masks_of_its_own() -> None:
    model = tiny_model(V, **REGULARIZED).train()
    generator = torch.Generator().manual_seed(1)
    states = random_states(model)
    first, second = (model(tokens(), states, generator)[0] for _ in range(2))
    assert not torch.equal(first, second)
