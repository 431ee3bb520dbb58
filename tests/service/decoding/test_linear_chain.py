"""Labels of places against all labelings, counted one by one."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle.arrays import Float32Array, Ids
from service.bundle.labeler import FORBIDDEN, LinearChain
from service.decoding.linear_chain import Chain, labelings

several = settings(max_examples=60, deadline=None)


def log_softmax(scores: Float32Array) -> Float32Array:
    exact = scores.astype(np.float64)
    log_z = np.log(np.exp(exact).sum(axis=-1, keepdims=True))
    return np.asarray(exact - log_z, np.float32)


@st.composite
def lines(draw: st.DrawFn, chained: bool | None = None) -> tuple[Float32Array, Chain | None]:
    """Log-probabilities of a few places, and a chain or none."""
    places, count = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    numbers = np.random.default_rng(draw(st.integers(0, 10**6)))
    scores = log_softmax(numbers.normal(scale=2.0, size=(places, count)).astype(np.float32))
    if draw(st.booleans()):
        # Ties, which every search must live with.
        scores = log_softmax(np.round(scores))
    if not (draw(st.booleans()) if chained is None else chained):
        return scores, None
    parts = ((count, count), (count,), (count,))
    return scores, Chain(*(numbers.normal(scale=2.0, size=size) for size in parts))


def counted(scores: Float32Array, chain: Chain | None) -> dict[tuple[int, ...], float]:
    """log P of every labeling, one by one."""
    found = {}
    for labels in itertools.product(range(scores.shape[1]), repeat=len(scores)):
        total = sum(float(scores[i, label]) for i, label in enumerate(labels))
        if chain is not None:
            total += float(chain.first[labels[0]] + chain.last[labels[-1]])
            total += sum(float(chain.transitions[pair]) for pair in itertools.pairwise(labels))
        found[labels] = total
    log_z = 0.0 if chain is None else float(np.logaddexp.reduce(list(found.values())))
    return {labels: total - log_z for labels, total in found.items()}


def mass(values: list[float]) -> float:
    return float(np.logaddexp.reduce(values))


@several
@given(line=lines(), count=st.integers(1, 30))
def test_the_likeliest_labelings_are_those_of_all(
    line: tuple[Float32Array, Chain | None], count: int
) -> None:
    every = counted(*line)
    found = labelings(*line).best(count)
    assert len({tuple(x.labels.tolist()) for x in found}) == len(found) == min(count, len(every))
    wanted = sorted(every.values(), reverse=True)[:count]
    assert [x.logprob for x in found] == pytest.approx(wanted, abs=1e-9)
    for labeling in found:
        assert labeling.logprob == pytest.approx(every[tuple(labeling.labels.tolist())], abs=1e-9)


@several
@given(line=lines())
def test_a_marginal_is_the_mass_of_all_labelings_with_that_label(
    line: tuple[Float32Array, Chain | None],
) -> None:
    every, marginals = counted(*line), labelings(*line).marginals
    for (place, label), value in np.ndenumerate(marginals):
        wanted = mass([x for labels, x in every.items() if labels[place] == label])
        assert value == pytest.approx(wanted, abs=1e-6)


@several
@given(line=lines(), data=st.data())
def test_a_segment_has_the_mass_of_all_labelings_with_it(
    line: tuple[Float32Array, Chain | None], data: st.DataObject
) -> None:
    scores, _ = line
    start = data.draw(st.integers(0, len(scores) - 1))
    end = data.draw(st.integers(start + 1, len(scores)))
    label = st.integers(0, scores.shape[1] - 1)
    wanted_labels = data.draw(st.lists(label, min_size=end - start, max_size=end - start))
    every = counted(*line)
    wanted = mass([x for y, x in every.items() if list(y[start:end]) == wanted_labels])
    found = labelings(*line).segment(start, np.array(wanted_labels, np.uint16))
    assert found == pytest.approx(wanted, abs=1e-6)


@several
@given(line=lines(chained=False), count=st.integers(1, 8))
def test_zeros_for_transitions_are_no_chain(
    line: tuple[Float32Array, Chain | None], count: int
) -> None:
    scores, _ = line
    size = scores.shape[1]
    zeros = Chain(np.zeros((size, size)), np.zeros(size), np.zeros(size))
    plain, chained = labelings(scores, None), labelings(scores, zeros)
    assert chained.marginals == pytest.approx(plain.marginals, abs=1e-5)
    for one, other in zip(plain.best(count), chained.best(count), strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-5)


def test_the_sums_are_exact_where_probabilities_underflow() -> None:
    scores = np.array([[0.0, -4e3], [-4e3, 0.0]], np.float32)
    chain = Chain(np.array([[0.0, -1000.0], [0.0, 0.0]]), np.zeros(2), np.zeros(2))
    found = labelings(scores, chain)
    (best,) = found.best(1)
    assert best.labels.tolist() == [0, 1]
    assert best.logprob == 0.0
    assert found.segment(0, np.array([1], np.uint16)) == -3000.0
    assert found.marginals[1].tolist() == [-3000.0, 0.0]


@pytest.mark.parametrize("chained", [False, True])
def test_no_labeling_has_a_label_where_it_cannot_be(chained: bool) -> None:
    scores = log_softmax(np.array([[0, FORBIDDEN], [1, 2], [FORBIDDEN, 0]], np.float32))
    chain = Chain(np.zeros((2, 2)), np.zeros(2), np.zeros(2)) if chained else None
    found = labelings(scores, chain).best(16)
    assert [x.labels.tolist() for x in found] == [[0, 1, 1], [0, 0, 1]]


def test_a_text_without_places_has_one_labeling() -> None:
    chain = Chain.of(LinearChain(transitions=[[0.5]], first=[1.0], last=[2.0]))
    for line in (labelings(np.empty((0, 1), np.float32), x) for x in (None, chain)):
        (only,) = line.best(3)
        assert (only.labels.tolist(), only.logprob) == ([], 0.0)
        assert line.segment(0, _none()) == 0.0
        assert line.marginals.shape == (0, 1)


def test_a_long_text_is_labelled_as_its_numbers_say() -> None:
    numbers = np.random.default_rng(3)
    scores = log_softmax(numbers.normal(scale=3.0, size=(500, 7)).astype(np.float32))
    chain = Chain(numbers.normal(size=(7, 7)), np.zeros(7), np.zeros(7))
    found = labelings(scores, chain)
    assert np.exp(found.marginals).sum(axis=1) == pytest.approx(1.0)
    first, *others = found.best(5)
    assert [x.logprob for x in others] == sorted((x.logprob for x in others), reverse=True)
    assert first.logprob > others[0].logprob
    one: Any = found.best(1)[0]
    assert one.labels.tolist() == first.labels.tolist()
    # Of places by themselves, the second best differs where that costs least.
    plain = labelings(scores, None)
    best, second = plain.best(2)
    (place,) = np.flatnonzero(best.labels != second.labels)
    gaps = np.sort(scores.astype(np.float64), axis=1)[:, ::-1]
    assert place == np.argmin(gaps[:, 0] - gaps[:, 1])


def _none() -> Ids:
    return np.empty(0, np.uint16)
