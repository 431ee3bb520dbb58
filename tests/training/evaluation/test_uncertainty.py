"""The spread of figures on held-out text: units, standard errors, and paired differences."""

import itertools
import math

import numpy as np
import pytest
import torch

from service.bundle.text import BOS_ID, EOS_ID
from training.config import BaselineConfig, LanguageModelNetworkConfig
from training.data.corpus import Split
from training.evaluation import ngram
from training.evaluation.language_model import evaluate
from training.evaluation.language_model_report import measure_baselines, measurement, table
from training.evaluation.uncertainty import units_of
from training.networks.language_model import LanguageModel

VOCAB = 10


def drawn(documents: int, chars: int, seed: int = 0) -> Split:
    """Documents of random characters, of `chars` at most."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, chars + 1, documents)
    ids = [[BOS_ID, *rng.integers(4, VOCAB, n), EOS_ID] for n in lengths]
    starts = np.cumsum([0, *map(len, ids)])
    return Split(np.concatenate(ids).astype(np.uint16), starts)


def model() -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(LanguageModelNetworkConfig(hidden_size=8, embedding_dim=4), VOCAB)


@pytest.mark.parametrize("split", [drawn(70, 40), drawn(3, 3000)])
def test_units_hold_every_character_and_every_nat_once(split: Split) -> None:
    units = units_of(split)
    assert len(units) >= 10
    assert units.chars.sum() == split.chars
    score = evaluate(model(), split, torch.device("cpu"))
    assert score.unit_nats is not None
    assert score.unit_nats.sum() == pytest.approx(score.nats, rel=1e-9)
    models = ngram.fit(split.ids, split.starts, VOCAB, 3)
    totals = ngram.evaluate(models, split.ids, split.starts)
    for order, nats in ngram.evaluate_parts(models, split.ids, units.bounds).items():
        assert nats.sum() == pytest.approx(totals[order], rel=1e-9)


def test_a_unit_has_the_nats_of_its_document() -> None:
    split = drawn(40, 30)
    score = evaluate(model(), split, torch.device("cpu"))
    assert score.unit_nats is not None
    for i, (start, end) in enumerate(itertools.pairwise(split.starts)):
        alone = Split(split.ids[start:end], np.array([0, end - start]))
        found = evaluate(model(), alone, torch.device("cpu"))
        assert score.unit_nats[i] == pytest.approx(found.nats, rel=1e-5)
        assert found.standard_error is None


def test_the_standard_error_is_the_spread_over_other_draws_of_the_text() -> None:
    one = model()
    scores = [evaluate(one, drawn(60, 40, seed), torch.device("cpu")) for seed in range(120)]
    spread = float(np.std([score.bits_per_char for score in scores]))
    claimed = [x.standard_error for x in scores if x.standard_error is not None]
    assert len(claimed) == 120
    assert np.mean(claimed) == pytest.approx(spread, rel=0.2)


def test_a_difference_on_the_same_text_is_surer_than_either_figure() -> None:
    held_out = drawn(60, 40)
    score = evaluate(model(), held_out, torch.device("cpu"))
    floors = measure_baselines(
        drawn(60, 40, 1), held_out, VOCAB, BaselineConfig(max_order=2), score
    )
    for floor in floors:
        assert floor.difference_error is not None
        assert floor.standard_error is not None
        assert score.standard_error is not None
        assert floor.difference_error < math.hypot(floor.standard_error, score.standard_error)
    text = table("test", [measurement("mine", "model", score), *floors])
    best = min(floors, key=lambda x: x.bits_per_char)
    gain = best.bits_per_char - score.bits_per_char
    word = "better" if gain > 0 else "worse"
    last = (
        f"mine: {word} than the {best.name} by {abs(gain):.4f} ± {best.difference_error:.4f} bits"
    )
    assert text.splitlines()[-1].startswith(last)
    assert text.splitlines()[1].endswith("± bits/char")
