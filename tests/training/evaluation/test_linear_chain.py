"""A linear-chain CRF: every sum against all paths, in numpy and in PyTorch."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.bundle.labeler import FORBIDDEN
from service.bundle.labeler import LinearChain as ServedChain
from service.decoding import linear_chain as service_chain
from training.evaluation.linear_chain import Chain, chain_of, served_chain
from training.networks.linear_chain import LinearChain

SIZES = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 4))  # B, T, L
SEEDS = st.integers(0, 2**32 - 1)


def drawn(seed: int, sizes: tuple[int, int, int]) -> tuple[Chain, Any, Any]:
    """A chain, scores [B, T, L] with some labels forbidden, and lengths [B]."""
    rng = np.random.default_rng(seed)
    rows, steps, labels = sizes
    chain = Chain(*(rng.normal(0, 2, size) for size in ((labels, labels), labels, labels)))
    scores = rng.normal(0, 2, (rows, steps, labels))
    forbidden = rng.random(scores.shape) < 0.2
    forbidden[..., 0] = False
    scores[forbidden] += FORBIDDEN
    return chain, scores, rng.integers(1, steps + 1, rows)


def paths(chain: Chain, scores: Any) -> tuple[list[tuple[int, ...]], Any]:
    """All labels of a text with `scores` [T, L], and their log-probabilities."""
    steps, labels = scores.shape
    found = list(product(range(labels), repeat=steps))
    exponents = np.array([chain.path_score(scores, np.array(path)) for path in found])
    return found, exponents - np.logaddexp.reduce(exponents)


@given(seed=SEEDS, sizes=SIZES)
def test_marginals_and_the_likeliest_path_are_those_of_all_paths(
    seed: int, sizes: tuple[int, int, int]
) -> None:
    chain, scores, lengths = drawn(seed, sizes)
    marginals, log_z = chain.marginals(scores, lengths)
    best = chain.likeliest(scores, lengths)
    for row, length in enumerate(lengths):
        mine = scores[row, :length]
        found, logprobs = paths(chain, mine)
        assert tuple(best[row]) == found[int(logprobs.argmax())]
        path = np.array(found[-1])
        assert chain.path_score(mine, path) - log_z[row] == pytest.approx(logprobs[-1], abs=1e-9)
        for i, label in product(range(length), range(sizes[2])):
            through = [x for x, path in zip(logprobs, found, strict=True) if path[i] == label]
            wanted = np.logaddexp.reduce(through)
            assert np.exp(marginals[row, i, label]) == pytest.approx(np.exp(wanted), abs=1e-9)


@given(seed=SEEDS, sizes=SIZES)
def test_pytorch_has_the_same_probability_of_a_path(seed: int, sizes: tuple[int, int, int]) -> None:
    chain, scores, lengths = drawn(seed, sizes)
    network = LinearChain(sizes[2]).double()
    with torch.no_grad():
        for name in ("transitions", "first", "last"):
            getattr(network, name).copy_(torch.from_numpy(getattr(chain, name)))
    labels = np.random.default_rng(seed).integers(0, sizes[2], sizes[:2])
    tensors = (torch.from_numpy(x) for x in (scores, labels, lengths))
    found = network.logprob(*tensors)
    for row, length in enumerate(lengths):
        all_paths, logprobs = paths(chain, scores[row, :length])
        wanted = logprobs[all_paths.index(tuple(labels[row, :length]))]
        assert found[row].item() == pytest.approx(wanted, rel=1e-9, abs=1e-8)


def test_log_z_of_a_long_text_is_exact_where_the_exponents_are_huge() -> None:
    # All labels alike: log Z = T log L + the sum of the exponents.
    steps, labels = 300, 3
    chain = Chain(np.full((labels, labels), 50.0), np.zeros(labels), np.zeros(labels))
    scores = np.full((1, steps, labels), -700.0)
    _, log_z = chain.marginals(scores, np.array([steps]))
    wanted = steps * (np.log(labels) - 700.0) + 50.0 * (steps - 1)
    assert log_z[0] == pytest.approx(wanted, rel=1e-12)


def test_a_trained_chain_and_a_bundles_chain_have_the_same_numbers() -> None:
    network = LinearChain(2)
    with torch.no_grad():
        network.transitions.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        network.first.copy_(torch.tensor([5.0, 6.0]))
    served = ServedChain(transitions=[[1.0, 2.0], [3.0, 4.0]], first=[5.0, 6.0], last=[0.0, 0.0])
    for found in (chain_of(network), served_chain(served)):
        assert found.transitions.tolist() == [[1.0, 2.0], [3.0, 4.0]]  # from, to
        assert (found.first.tolist(), found.last.tolist()) == ([5.0, 6.0], [0.0, 0.0])


@given(seed=SEEDS, sizes=SIZES)
def test_the_service_finds_the_same(seed: int, sizes: tuple[int, int, int]) -> None:
    chain, scores, lengths = drawn(seed, sizes)
    marginals, log_z = chain.marginals(scores.astype(np.float32).astype(np.float64), lengths)
    best = chain.likeliest(scores.astype(np.float32).astype(np.float64), lengths)
    theirs = service_chain.Chain(chain.transitions, chain.first, chain.last)
    for row, length in enumerate(lengths):
        mine = scores[row, :length].astype(np.float32)
        found = service_chain.labelings(mine, theirs)
        np.testing.assert_allclose(
            np.exp(found.marginals), np.exp(marginals[row, :length]), atol=1e-9
        )
        (likeliest,) = found.best(1)
        assert likeliest.labels.tolist() == best[row].tolist()
        exponent = chain.path_score(mine.astype(np.float64), best[row])
        assert likeliest.logprob == pytest.approx(exponent - log_z[row], abs=1e-8)
