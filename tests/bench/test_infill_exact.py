"""The automaton against the model that it is made of, and the search against every fill."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.infill_exact import Automaton, Blank, Fills
from service.bundle.text import BOS_ID, UNK_ID
from tests.training.ngram_models import fitted, models, text_model
from training.evaluation.ngram import NGramModel
from training.evaluation.ngram_pruning import prune

LETTERS = 4
VOCAB_SIZE = UNK_ID + 1 + LETTERS


@dataclass(frozen=True, slots=True)
class Case:
    """A small model and a blank that is short enough to try every fill."""

    model: NGramModel
    prefix: list[int]
    suffix: list[int]
    blank: Blank


@st.composite
def cases(draw: st.DrawFn) -> Case:
    letters = st.integers(UNK_ID, VOCAB_SIZE - 1)
    corpus = draw(st.lists(st.lists(letters, max_size=40), min_size=1, max_size=3))
    model = fitted(corpus, VOCAB_SIZE, draw(st.integers(2, 5)))
    model = prune(model, at_most=draw(st.sampled_from([0, 5, 1000])))
    prefix, suffix = (draw(st.lists(letters, max_size=8)) for _ in range(2))
    allowed = draw(st.sets(st.integers(UNK_ID + 1, VOCAB_SIZE - 1), min_size=1, max_size=3))
    shortest = draw(st.integers(0, 3))
    lengths = range(shortest, shortest + draw(st.integers(1, 3)))
    mask = np.isin(np.arange(VOCAB_SIZE), sorted(allowed))
    return Case(model, [BOS_ID, *prefix], suffix, Blank(mask, lengths))


@settings(max_examples=40)
@given(models(), st.data())
def test_the_automaton_reads_as_the_model_does(model: NGramModel, data: st.DataObject) -> None:
    letters = st.integers(UNK_ID, len(model.unigram) - 1)
    ids = [BOS_ID, *data.draw(st.lists(letters, min_size=1, max_size=12))]
    automaton = Automaton(model)

    _, state = automaton.read(ids[:-1])
    prob, after = automaton.read(ids[-1:], state)
    probs, states = automaton.leaving(state)

    assert np.log(prob) == pytest.approx(model.logprobs(np.array(ids))[-1], abs=1e-9)
    assert (probs[ids[-1]], states[ids[-1]]) == (pytest.approx(prob, rel=1e-12), after)
    assert np.allclose(probs, model.distributions(np.array(ids))[-1], rtol=1e-9)


def every_fill(case: Case) -> dict[tuple[int, ...], float]:
    """The posterior of each, by reading the whole text with it."""
    allowed = np.flatnonzero(case.blank.allowed).tolist()
    joint = {
        fill: float(
            np.exp(case.model.logprobs(np.array([*case.prefix, *fill, *case.suffix])).sum())
        )
        for length in case.blank.lengths
        for fill in itertools.product(allowed, repeat=length)
    }
    total = sum(joint.values())
    return {fill: value / total for fill, value in joint.items()}


@settings(max_examples=40)
@given(cases())
def test_fills_and_posteriors_are_those_of_brute_force(case: Case) -> None:
    expected = every_fill(case)

    fills = Fills(Automaton(case.model), case.prefix, case.suffix, case.blank)
    found = fills.likeliest(20)

    best = sorted(expected.values(), reverse=True)[:20]
    assert [fill.posterior for fill in found] == pytest.approx(best, rel=1e-9)
    for fill in found:
        assert fill.posterior == pytest.approx(expected[fill.ids], rel=1e-9)
        assert fill.posterior == pytest.approx(fills.posterior(fill.ids), rel=1e-9)
    assert len({fill.ids for fill in found}) == len(found)


def test_a_long_blank_is_the_sum_over_its_first_token() -> None:
    """Brute force cannot reach ten tokens, but one token after the other can."""
    automaton = Automaton(text_model(4))
    prefix = np.random.default_rng(1).integers(UNK_ID + 1, 37, 10).tolist()
    allowed = np.arange(37) > UNK_ID

    def total(before: list[int], length: int) -> float:
        blank = Blank(allowed, range(length, length + 1))
        return Fills(automaton, before, prefix[:3], blank).total

    _, state = automaton.read(prefix)
    probs, _ = automaton.leaving(state)
    parts = [
        float(probs[token]) * total([*prefix, token], 9)
        for token in np.flatnonzero(allowed).tolist()
    ]

    assert sum(parts) == pytest.approx(total(prefix, 10), rel=1e-9)
