"""Text from a PyTorch model."""

import pytest
import torch
from torch import Tensor

from service.bundle.text import BOS_ID, EOS_ID, PAD_ID, UNK_ID, Normalization
from tests.training.helpers import tiny_model, vocabulary
from training.evaluation.sampling import sample
from training.networks.language_model import LanguageModel

VOCAB = vocabulary(11)  # a to g


def biased(**bias: float) -> LanguageModel:
    """A model that gives every token its bias, whatever it reads."""
    model = tiny_model(11)
    with torch.no_grad():
        model.output.weight.zero_()
        model.output.bias.fill_(-100.0)
        for token, value in bias.items():
            special = {"pad": PAD_ID, "bos": BOS_ID, "eos": EOS_ID, "unk": UNK_ID}
            model.output.bias[special.get(token, ord(token[0]) - ord("a") + 4)] = value
    return model


def text(model: LanguageModel, *, prompt: str = "", seed: int = 1, temperature: float = 1.0) -> str:
    found, _ = sample(
        model,
        VOCAB,
        Normalization(lowercase=True),
        prompt=prompt,
        max_tokens=20,
        temperature=temperature,
        seed=seed,
    )
    return found


def test_a_seed_decides_the_sample() -> None:
    model = tiny_model(11)
    assert text(model, seed=1) == text(model, seed=1)
    assert text(model, seed=1) != text(model, seed=2)


@pytest.mark.parametrize(("eos", "ended"), [(-100.0, False), (100.0, True)])
def test_a_sample_says_whether_it_came_to_its_end(eos: float, ended: bool) -> None:
    found = sample(
        biased(b=1.0, eos=eos),
        VOCAB,
        Normalization(),
        prompt="",
        max_tokens=3,
        temperature=0.0,
        seed=1,
    )
    assert found == ("" if ended else "bbb", ended)


def test_torchs_own_generator_is_left_alone() -> None:
    model = tiny_model(11)
    before = torch.get_rng_state()
    text(model)
    assert torch.equal(torch.get_rng_state(), before)


def test_temperature_zero_takes_the_likeliest() -> None:
    assert text(biased(b=1.0, c=1.1), temperature=0.0) == "c" * 20


def test_a_low_temperature_prefers_the_likelier() -> None:
    model = biased(b=1.0, c=2.0)
    assert text(model, temperature=0.01) == "c" * 20
    assert set(text(model, temperature=5.0)) == {"b", "c"}


def test_eos_ends_the_text() -> None:
    assert text(biased(eos=5.0, b=0.0), temperature=0.0) == ""


@pytest.mark.parametrize("token", ["pad", "bos", "unk"])
def test_what_has_no_text_is_never_drawn(token: str) -> None:
    assert text(biased(b=0.0, **{token: 50.0})) == "b" * 20


class Listening(LanguageModel):
    """Remembers the ids it was given."""

    heard: list[int]

    def forward(
        self,
        tokens: Tensor,
        states: object,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        self.heard += tokens[0].tolist()
        return super().forward(tokens, states, generator)  # type: ignore[arg-type]


def test_the_prompt_is_normalized_and_read_after_bos_and_then_every_character_drawn() -> None:
    model = Listening(tiny_model().config, 11).eval()
    model.heard = []
    drawn = text(model, prompt="aB?")
    # The last one drawn is not read any more, unless it was eos.
    assert f"ab?{drawn}"[:-1] == "ab?" + VOCAB.decode(model.heard[4:])[: len(drawn) - 1]
    assert model.heard[:4] == [BOS_ID, 4, 5, UNK_ID]


@pytest.mark.parametrize("training", [True, False])
def test_the_models_mode_is_left_as_it_was(training: bool) -> None:
    model = tiny_model(11, dropout_output=0.5).train(training)
    assert text(model, temperature=0.0) == text(model, temperature=0.0)
    assert model.training == training
