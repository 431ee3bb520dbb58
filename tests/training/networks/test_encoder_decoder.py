"""The encoder-decoder: rows do not meet, every weight learns, attention is a distribution.

B batch, S source positions, M memory positions, T target positions, V target vocabulary.
"""

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from service.bundle.text import BOS_ID, EOS_ID, PAD_ID
from tests.training.helpers import TINY_SIZES, tiny_encoder_decoder
from training.config import EncoderDecoderNetworkConfig
from training.networks.encoder_decoder import EncoderDecoder

CELLS = ["rnn", "gru", "lstm"]
ATTENTIONS = ["none", "dot", "general", "additive"]
ENCODERS = ["recurrent", "crnn"]
every_kind = pytest.mark.parametrize(
    "kind",
    [
        {"cell": cell, "attention": attention, "encoder": encoder, "input_feeding": feeding}
        for cell, attention, encoder, feeding in product(CELLS, ATTENTIONS, ENCODERS, [False, True])
    ],
    ids=lambda kind: "-".join(map(str, kind.values())),
)

SOURCES = [[5, 6, 7, 8, 9, 10, 4], [4, 9, 5], [7], [], [10, 10, 6, 4, 8]]
TOKENS = torch.tensor([[BOS_ID, 4, 5, 6], [BOS_ID, 8, 7, 5], [BOS_ID, 3, 4, 4]] * 2)[:5]


def padded(sources: list[list[int]], extra: int = 0) -> tuple[Tensor, Tensor]:
    """Sources with eos behind, padded to the longest and `extra` positions more."""
    longest = max(map(len, sources)) + 1 + extra
    rows = [[*x, EOS_ID] + [PAD_ID] * (longest - len(x) - 1) for x in sources]
    return torch.tensor(rows), torch.tensor([len(x) + 1 for x in sources])


def made(**options: Any) -> EncoderDecoder:
    torch.manual_seed(1)
    return tiny_encoder_decoder(**options)


def loss_of(model: EncoderDecoder, **options: Any) -> Tensor:
    logits = model(*padded(SOURCES), TOKENS, **options)
    return torch.log_softmax(logits, dim=2)[..., 4].sum()


# --- rows ---------------------------------------------------------------------------------------


@every_kind
@torch.no_grad()
def test_padding_and_neighbours_never_change_a_rows_logits(kind: dict[str, Any]) -> None:
    model = made(**kind).double()
    together = model(*padded(SOURCES, extra=4), TOKENS)
    for i, source in enumerate(SOURCES):
        alone = model(*padded([source]), TOKENS[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-12, rtol=1e-12)


@torch.no_grad()
def test_what_stands_in_the_padding_means_nothing() -> None:
    for encoder in ENCODERS:
        model = made(encoder=encoder)
        sources, lengths = padded(SOURCES, extra=4)
        other = sources.masked_fill(torch.arange(sources.shape[1]) >= lengths[:, None], 9)
        assert torch.equal(model(sources, lengths, TOKENS), model(other, lengths, TOKENS))


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("attention", ATTENTIONS)
@torch.no_grad()
def test_every_source_position_matters(encoder: str, attention: str) -> None:
    model = made(encoder=encoder, attention=attention, pool_stride=1)
    source = [5, 6, 7, 8]
    before = model(*padded([source]), TOKENS[:1])
    for i in range(len(source)):
        changed = [*source[:i], 10, *source[i + 1 :]]
        assert not torch.allclose(model(*padded([changed]), TOKENS[:1]), before, atol=1e-5)


@every_kind
@torch.no_grad()
def test_a_position_reads_only_the_tokens_before_it(kind: dict[str, Any]) -> None:
    model = made(**kind)
    changed = TOKENS.clone()
    changed[:, 2] = 3
    before, after = (model(*padded(SOURCES), x) for x in (TOKENS, changed))
    torch.testing.assert_close(before[:, :2], after[:, :2], atol=1e-6, rtol=0)
    assert not torch.allclose(before[:, 2], after[:, 2], atol=1e-4)


@every_kind
@torch.no_grad()
def test_a_sequence_is_its_steps_one_by_one(kind: dict[str, Any]) -> None:
    model = made(**kind, decoder_layers=2).double()
    memory = model.encode(*padded(SOURCES))
    states = model.decoder.initial_states(memory.summary)
    whole, _, _ = model.decoder(TOKENS, states, memory)
    for t in range(TOKENS.shape[1]):
        logits, states, _ = model.decoder(TOKENS[:, t : t + 1], states, memory)
        torch.testing.assert_close(logits[:, 0], whole[:, t], atol=1e-12, rtol=1e-12)


# --- learning -----------------------------------------------------------------------------------


@every_kind
def test_gradients_reach_every_parameter(kind: dict[str, Any]) -> None:
    model = made(**kind, encoder_layers=2, decoder_layers=2).train()
    loss_of(model).backward()  # type: ignore[no-untyped-call]
    without = [
        name for name, x in model.named_parameters() if x.grad is None or not x.grad.abs().sum()
    ]
    assert without == []


@pytest.mark.parametrize("tied", [False, True])
def test_tied_weights_are_one_parameter(*, tied: bool) -> None:
    model = made(tie_embeddings=tied)
    assert (model.decoder.output.weight is model.decoder.embedding.weight) is tied
    assert model.decoder.readout_size == (5 if tied else 12)


def test_the_highways_carry_their_input_through_at_first() -> None:
    config = EncoderDecoderNetworkConfig(**{**TINY_SIZES, "encoder": "crnn"})
    convolutions = EncoderDecoder(config, 11, 9).encoder.convolutions
    assert convolutions is not None
    for layer in convolutions.highways:
        assert (layer.bias[convolutions.size :] == -1.0).all()  # type: ignore[index]


# --- scheduled sampling -------------------------------------------------------------------------


@pytest.mark.parametrize("feeding", [False, True])
def test_teacher_forcing_of_one_is_plain_teacher_forcing(*, feeding: bool) -> None:
    model = made(input_feeding=feeding).train()
    plain = loss_of(model)
    assert torch.equal(loss_of(model, teacher_forcing=1.0), plain)
    # The path of scheduled sampling, where every draw says the true token.
    almost = loss_of(model, teacher_forcing=1.0 - 1e-12, generator=torch.Generator())
    torch.testing.assert_close(almost, plain)


@pytest.mark.parametrize("feeding", [False, True])
@torch.no_grad()
def test_without_teacher_forcing_the_model_reads_its_own_tokens(*, feeding: bool) -> None:
    model = made(input_feeding=feeding).train()
    sources = padded(SOURCES)
    free = model(*sources, TOKENS, generator=torch.Generator(), teacher_forcing=0.0)
    own = torch.cat((TOKENS[:, :1], free.argmax(dim=2)[:, :-1]), dim=1)
    torch.testing.assert_close(model(*sources, own), free)
    assert not torch.equal(own, TOKENS)


@torch.no_grad()
def test_tokens_are_the_true_ones_as_often_as_teacher_forcing_says() -> None:
    model = made(attention="none").train()
    count = 2000
    sources, lengths = padded([[5]] * count)
    tokens = torch.tensor([[BOS_ID, 4]]).repeat(count, 1)
    found = model(sources, lengths, tokens, torch.Generator().manual_seed(1), 0.7)
    forced = model(sources[:1], lengths[:1], tokens[:1])[0, 1]
    free = (found[:, 1] - forced).abs().amax(dim=1) > 1e-4
    likeliest = int(found[0, 0].argmax())
    assert likeliest != 4
    assert 1.0 - free.float().mean().item() == pytest.approx(0.7, abs=0.04)


@torch.no_grad()
def test_an_evaluation_always_reads_the_true_tokens() -> None:
    model = made()
    assert torch.equal(loss_of(model, teacher_forcing=0.0), loss_of(model))


# --- attention ----------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["dot", "general", "additive"])
@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("feeding", [False, True])
@torch.no_grad()
def test_attention_is_a_distribution_over_the_source(
    attention: str, encoder: str, *, feeding: bool
) -> None:
    model = made(attention=attention, encoder=encoder, input_feeding=feeding)
    memory = model.encode(*padded(SOURCES, extra=3))
    states = model.decoder.initial_states(memory.summary)
    _, _, weights = model.decoder(TOKENS, states, memory)  # [B, T, M]
    assert weights.shape == (5, 4, memory.values.shape[1])
    torch.testing.assert_close(weights.sum(dim=2), torch.ones(5, 4))
    inside = memory.mask.unsqueeze(1).expand_as(weights)
    assert (weights[~inside] == 0.0).all()
    assert (weights[inside] > 0.0).all()
    # It looks elsewhere for other states.
    assert not torch.allclose(weights[0, 0], weights[0, 1], atol=1e-4)


@torch.no_grad()
def test_without_attention_there_are_no_weights() -> None:
    for feeding in (False, True):
        model = made(attention="none", input_feeding=feeding)
        memory = model.encode(*padded(SOURCES))
        states = model.decoder.initial_states(memory.summary)
        assert model.decoder(TOKENS, states, memory)[2] is None


@torch.no_grad()
def test_scores_are_those_of_the_papers() -> None:
    for kind in ("dot", "general", "additive"):
        model = made(attention=kind)
        memory = model.encode(*padded([SOURCES[0]]))
        attention = model.decoder.attention
        assert attention is not None
        h, values = torch.randn(12), memory.values[0]  # [H], [M, D]
        if kind == "dot":
            scores = torch.stack([h @ v for v in values])
        elif kind == "general":
            scores = torch.stack([h @ (attention.key.weight @ v) for v in values])
        else:
            query = attention.query.weight @ h + attention.query.bias
            scores = torch.stack(
                [
                    attention.score.weight[0] @ torch.tanh(query + attention.key.weight @ v)
                    for v in values
                ]
            )
        found = attention(h.view(1, 1, -1), memory)[0, 0]
        torch.testing.assert_close(found, torch.softmax(scores, dim=0))


# --- the convolutional front end ----------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=4), st.integers(1, 5), st.integers(0, 6))
@torch.no_grad()
def test_pooling_leaves_a_position_for_every_stride_begun(
    sizes: list[int], stride: int, extra: int
) -> None:
    model = made(encoder="crnn", pool_stride=stride)
    sources, lengths = padded([[5] * size for size in sizes], extra)
    memory = model.encode(sources, lengths)
    expected = [-(-int(length) // stride) for length in lengths]
    assert memory.mask.sum(dim=1).tolist() == expected
    assert memory.values.shape[1] == -(-sources.shape[1] // stride)


@torch.no_grad()
def test_convolutions_keep_the_length_whatever_their_width() -> None:
    for width in (1, 2, 3, 4, 7):
        model = made(encoder="crnn", conv_widths=[width], conv_filters=[4], pool_stride=1)
        assert model.encode(*padded(SOURCES)).values.shape[1] == 8


# --- dropout ------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["dropout_embedding", "dropout_output"])
@torch.no_grad()
def test_a_sequence_step_by_step_drops_what_it_drops_as_a_whole(option: str) -> None:
    # Scheduled sampling takes the steps one by one, and draws once more for each: the masks that
    # were drawn before are the same.
    model = made(attention="none", **{option: 0.5}).train()
    memory = model.encode(*padded(SOURCES))
    states = model.decoder.initial_states(memory.summary)
    found = []
    for forcing in (1.0, 1.0 - 1e-12):
        generator = torch.Generator().manual_seed(3)
        found.append(model.decoder(TOKENS, states, memory, generator, forcing)[0])
    torch.testing.assert_close(found[0][:, 0], found[1][:, 0])
    if option == "dropout_embedding":  # drawn before the first step
        torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("feeding", [False, True])
@torch.no_grad()
def test_an_output_mask_hides_the_same_features_at_every_step(*, feeding: bool) -> None:
    model = made(input_feeding=feeding, dropout_output=0.5).train()
    seen: list[Tensor] = []
    model.decoder.output.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0] == 0))
    model(*padded(SOURCES), TOKENS, torch.Generator().manual_seed(1))
    hidden = torch.cat(seen, dim=1)  # [B, T, R]
    assert torch.equal(hidden, hidden[:, :1].expand_as(hidden))
    assert 0.3 < hidden.float().mean().item() < 0.7


@pytest.mark.parametrize("option", ["dropout_embedding", "dropout_between", "dropout_output"])
@torch.no_grad()
def test_dropout_is_drawn_from_the_generator_and_only_in_training(option: str) -> None:
    model = made(**{option: 0.5}, encoder_layers=2, decoder_layers=2).train()
    first, again, other = (
        loss_of(model, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert first == again != other
    plain = loss_of(model.eval(), generator=torch.Generator().manual_seed(1))
    assert plain == loss_of(model) != first


# --- configuration ------------------------------------------------------------------------------


def test_dot_needs_equal_sizes() -> None:
    with pytest.raises(ValidationError, match="hidden_size = 2 · encoder_hidden_size"):
        EncoderDecoderNetworkConfig(attention="dot", hidden_size=12, encoder_hidden_size=8)


def test_filters_must_have_a_width_each() -> None:
    with pytest.raises(ValidationError, match="one number for each of conv_widths"):
        EncoderDecoderNetworkConfig(conv_widths=[1, 2], conv_filters=[3])
