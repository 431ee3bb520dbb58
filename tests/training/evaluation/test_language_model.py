"""Scores against one token at a time in double precision."""

import copy
import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.helpers import documents, split_of, tiny_model
from training.data.corpus import Split
from training.evaluation import language_model as evaluation
from training.evaluation.language_model import Score, evaluate
from training.networks.language_model import LanguageModel

CPU = torch.device("cpu")


def naive_nats(model: LanguageModel, split: Split) -> float:
    """Total negative log-probability, token by token, from the zero state at every document."""
    exact = copy.deepcopy(model).double()
    total = 0.0
    with torch.no_grad():
        for document in documents(split):
            states = exact.initial_states(1)
            for token, target in itertools.pairwise(document):
                logits, states = exact(torch.tensor([[token]]), states)
                total -= float(torch.log_softmax(logits[0, 0], 0)[target])
    return total


def assert_scored(model: LanguageModel, contents: Sequence[Sequence[int]]) -> None:
    split = split_of(contents)
    score = evaluate(model, split, CPU)
    assert score.nats == pytest.approx(naive_nats(model, split), abs=1e-5 * split.tokens)
    assert (score.tokens, score.chars) == (split.tokens, split.chars)


@given(
    st.lists(st.lists(st.integers(3, 10), min_size=1, max_size=15), min_size=1, max_size=9),
    st.sampled_from(["rnn", "gru", "lstm"]),
    st.integers(1, 12),
)
@settings(deadline=None, max_examples=30)
def test_a_score_is_the_sum_over_tokens_whatever_the_windows(
    contents: list[list[int]], cell: str, window_tokens: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "_MAX_LANES", 4)
        patch.setattr(evaluation, "_WINDOW_TOKENS", 4 * window_tokens)
        assert_scored(tiny_model(cell=cell, num_layers=2), contents)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_one_document_longer_than_a_window_is_scored_with_its_state_carried(cell: str) -> None:
    text = torch.randint(3, 11, (5000,), generator=torch.Generator().manual_seed(1)).tolist()
    assert_scored(tiny_model(cell=cell), [text])


def test_more_documents_than_lanes_are_scored() -> None:
    assert_scored(tiny_model(), [[3 + i % 8] * (1 + i % 5) for i in range(150)])


def test_a_score_divides_by_what_its_means_are_over() -> None:
    score = Score(nats=6.0, tokens=3, chars=2)
    assert score.loss == 2.0
    assert score.bits_per_char == pytest.approx(3.0 / math.log(2))
    assert score.perplexity == pytest.approx(math.exp(2.0))


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_leaves_the_models_mode_as_it_was(training: bool) -> None:
    model = tiny_model(dropout_input=0.5).train(training)
    evaluate(model, split_of([[4, 5]]), CPU)
    assert model.training == training


def test_evaluation_drops_nothing_even_in_the_middle_of_training() -> None:
    model = tiny_model(dropout_input=0.5, weight_drop=0.5).train()
    scores = {evaluate(model, split_of([[4, 5, 6] * 9]), CPU).nats for _ in range(3)}
    assert len(scores) == 1
