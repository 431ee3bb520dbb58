"""Guess numbers: the estimate and its interval against true ranks of a model with few texts.

T texts, N nodes of texts that may go on, V vocabulary.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from service.bundle.guesses import MAX_GUESS_POINTS, GuessCurve
from service.bundle.text import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from tests.training.helpers import tiny_model
from tests.training.ngram_models import fitted
from training.evaluation.guesses import MAX_RELATIVE_ERROR, Samples, curve_of, sample_texts
from training.evaluation.ngram_network import network
from training.networks.mixture import AnyLanguageModel
from training.networks.ngram import NGram

LETTERS = [UNK_ID + 1, UNK_ID + 2, UNK_ID + 3, UNK_ID + 4]
MAX_CHARS = 6


@dataclass(frozen=True)
class Texts:
    """Every text of up to `MAX_CHARS` letters, likeliest first."""

    logprobs: npt.NDArray[np.float64]  # [T] with the end
    drawn: npt.NDArray[np.float64]  # [T]
    chars: npt.NDArray[np.int64]  # [T]


@pytest.fixture(scope="module")
def model() -> NGram:
    """An n-gram of skewed words: few are likely, most are rare, and unk has some probability."""
    rng = np.random.default_rng(0)
    words = []
    for _ in range(60):
        length = int(min(MAX_CHARS, rng.geometric(0.5)))
        words.append([LETTERS[i] for i in rng.choice(4, length, p=[0.55, 0.3, 0.1, 0.05])])
    return network(fitted(words, LETTERS[-1] + 1, 3)).eval()


@pytest.fixture(scope="module")
def texts(model: NGram) -> Texts:
    return enumerated(model, LETTERS, MAX_CHARS)


@torch.no_grad()
def enumerated(model: AnyLanguageModel, letters: list[int], max_chars: int) -> Texts:
    """The texts breadth first: all of a length at once."""
    logprobs, drawn, chars = [], [], []
    own, ours = torch.zeros(1).double(), torch.zeros(1).double()  # [N]
    tokens, states = torch.tensor([[BOS_ID]]), model.initial_states(1)
    for length in range(max_chars + 1):
        logits, states = model(tokens, states)
        logs = torch.log_softmax(logits[:, -1].double(), dim=-1)  # [N, V]
        possible = logs.clone()
        possible[:, [PAD_ID, BOS_ID, UNK_ID]] = -torch.inf
        possible = torch.log_softmax(possible, dim=-1)
        logprobs += (own + logs[:, EOS_ID]).tolist()
        drawn += (ours + possible[:, EOS_ID]).tolist()
        chars += [length] * len(own)
        own = (own[:, None] + logs[:, letters]).flatten()
        ours = (ours[:, None] + possible[:, letters]).flatten()
        tokens = torch.tensor(letters).repeat(len(tokens))[:, None]
        states = tuple(x.repeat_interleave(len(letters), dim=0) for x in states)
    order = np.argsort(-np.array(logprobs), kind="stable")
    return Texts(*(np.array(x)[order] for x in (logprobs, drawn, chars)))


def test_the_samples_are_texts_of_the_model_with_their_probabilities(
    model: NGram, texts: Texts
) -> None:
    samples = sample_texts(model, 4000, MAX_CHARS, seed=1)
    assert 0 < (~samples.ended).sum() < 400  # some go on beyond the longest length
    for found, every in ((samples.logprobs, texts.logprobs), (samples.drawn, texts.drawn)):
        ended = found[samples.ended]
        rising = np.sort(every)
        place = np.searchsorted(rising, ended).clip(1, len(rising) - 1)
        nearest = np.minimum(abs(ended - rising[place]), abs(ended - rising[place - 1]))
        assert nearest.max() < 1e-6
    assert (samples.drawn >= samples.logprobs).all()
    assert (samples.drawn - samples.logprobs).max() > 1e-3  # unk is never drawn


def test_the_same_seed_gives_the_same_samples_and_training_goes_on(model: NGram) -> None:
    model.train()
    torch.manual_seed(7)
    first = sample_texts(model, 50, MAX_CHARS, seed=3)
    assert model.training
    torch.rand(1)
    second = sample_texts(model, 50, MAX_CHARS, seed=3)
    other = sample_texts(model, 50, MAX_CHARS, seed=4)
    model.eval()
    assert first.logprobs.tolist() == second.logprobs.tolist()
    assert first.logprobs.tolist() != other.logprobs.tolist()


def test_a_network_is_sampled_as_it_scores() -> None:
    model = tiny_model()
    letters = list(range(EOS_ID + 2, model.vocab_size))
    texts = enumerated(model, letters, 2)
    samples = sample_texts(model, 2000, 2, seed=0)
    assert samples.ended.any()
    weights = np.exp(texts.drawn)
    share = samples.ended.mean()
    error = math.sqrt(share * (1 - share) / 2000)
    assert share == pytest.approx(weights.sum(), abs=4 * error)


def test_the_intervals_hold_the_true_rank_about_95_times_in_100(model: NGram, texts: Texts) -> None:
    ranks = np.arange(1, len(texts.logprobs) + 1)
    places = np.unique(np.geomspace(1, len(ranks) - 1, 25).astype(int)) - 1
    held = told = missed = 0
    errors: list[float] = []
    for seed in range(50):
        curve = curve_of(sample_texts(model, 3000, MAX_CHARS, seed))
        assert curve is not None
        for place in places.tolist():
            found = curve.of(float(texts.logprobs[place]), int(texts.chars[place]))
            assert found.low is not None
            if found.guesses is None or found.high is None:
                missed += found.low > ranks[place]
                continue
            assert 1.0 <= found.low <= found.guesses <= found.high
            told += 1
            held += found.low - 1e-3 <= ranks[place] <= found.high + 1e-3
            errors.append(found.guesses / ranks[place] - 1.0)
    assert told > 800
    assert 0.93 <= held / told <= 0.99
    assert missed <= 0.05 * (50 * len(places) - told)
    assert abs(np.mean(errors)) < 0.01  # no bias


def test_the_estimate_is_the_papers_sum(model: NGram) -> None:
    samples = sample_texts(model, 1500, MAX_CHARS, seed=2)
    curve = curve_of(samples)
    assert curve is not None
    assert curve.cut == (~samples.ended).sum()
    own = np.where(samples.ended, samples.logprobs, -np.inf)
    for logprob, guesses, error in zip(curve.logprobs, curve.guesses, curve.errors, strict=True):
        terms = np.where(own > logprob + 1e-5, np.exp(-samples.drawn), 0.0)
        assert guesses == pytest.approx(terms.mean(), rel=1e-5, abs=1e-5)
        assert error == pytest.approx(terms.std(ddof=1) / math.sqrt(1500), rel=1e-4, abs=1e-4)
    assert curve.errors[-1] <= MAX_RELATIVE_ERROR * (1.0 + curve.guesses[-1])
    between = 0.5 * (curve.logprobs[3] + curve.logprobs[4])
    found = curve.of(between, 1).guesses
    assert found is not None
    assert curve.guesses[3] < found - 1.0 < curve.guesses[4]


@settings(max_examples=12, deadline=None)
@given(st.integers(200, 2000), st.floats(0.1, 12.0), st.integers(0, 5))
def test_a_curve_is_small_and_rises(count: int, deviation: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logprobs = -100.0 + deviation * rng.standard_normal(count)
    curve = curve_of(Samples(logprobs, logprobs, np.ones(count, np.bool_), 9))
    if curve is None:
        assert deviation > 1.0
        return
    assert len(curve.logprobs) <= MAX_GUESS_POINTS
    assert len(curve.model_dump_json()) < 12_000
    grid = np.linspace(curve.logprobs[0] + 1.0, curve.logprobs[-1], 50).tolist()
    found = [curve.of(x, 9).guesses for x in grid]
    assert found == sorted(x for x in found if x is not None)
    beyond = curve.of(curve.logprobs[-1] - 0.1, 9)
    longer = curve.of(curve.logprobs[0], 10)
    assert (beyond.guesses, beyond.high) == (longer.guesses, longer.high) == (None, None)
    assert beyond.low == curve.of(curve.logprobs[-1], 9).low


def test_few_or_wild_samples_give_no_curve() -> None:
    ended = np.ones(50, np.bool_)
    assert curve_of(Samples(-np.arange(50.0), -np.arange(50.0), ended, 9)) is None
    far = np.linspace(-450.0, -2000.0, 500)
    assert curve_of(Samples(far, far, np.ones(500, np.bool_), 9)) is None


def test_a_text_that_no_sample_beats_has_an_upper_bound() -> None:
    curve = GuessCurve(
        samples=1000, max_chars=9, cut=0, logprobs=[-10.0, -11.0], guesses=[0, 22], errors=[0, 22]
    )
    found = curve.of(-9.0, 3)
    assert (found.guesses, found.low) == (1.0, 1.0)
    # Zero of n samples: Wilson's bound z^2 / n on their mass, at most p(t) a text.
    assert found.high == pytest.approx(1.0 + 1.96**2 * math.exp(9.0) / 1000)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guesses": [0.0]}, "same length"),
        ({"logprobs": [-1.0, -1.0]}, "lower"),
        ({"guesses": [2.0, 1.0]}, "before"),
        ({"errors": [-1.0, 0.0]}, "greater than or equal"),
        ({"logprobs": [-1.0]}, "at least 2"),
    ],
)
def test_a_broken_curve_is_refused(changes: dict[str, object], message: str) -> None:
    good = {
        "samples": 9,
        "max_chars": 9,
        "cut": 0,
        "logprobs": [-1.0, -2.0],
        "guesses": [0.0, 1.0],
        "errors": [0.0, 1.0],
    }
    GuessCurve.model_validate(good)
    with pytest.raises(ValidationError, match=message):
        GuessCurve.model_validate(good | changes)
