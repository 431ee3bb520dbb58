"""Greedy and beam search, held to a naive loop and to the enumeration of every target."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle.encoder_decoder import EncoderDecoderLimits
from service.bundle.text import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from tests.training.helpers import tiny_encoder_decoder
from training.data.pair_batches import pad_sources
from training.data.pairs import Ids
from training.evaluation import beam_search as decoding
from training.evaluation.beam_search import Hypothesis, translate
from training.networks.encoder_decoder import EncoderDecoder

CPU = torch.device("cpu")
KINDS: list[dict[str, Any]] = [
    {"cell": "lstm"},
    {"cell": "gru", "attention": "additive", "input_feeding": True},
    {"cell": "rnn", "attention": "none", "encoder": "crnn"},
]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["cell"])
lists = st.lists(st.integers(4, 10), max_size=9)


def made(vocab_size: int = 9, **options: Any) -> EncoderDecoder:
    """A model that is sure of some things: its likeliest tokens are not all alike."""
    torch.manual_seed(2)
    return tiny_encoder_decoder(11, vocab_size, scale=3.0, **options)


def as_sources(values: Sequence[Sequence[int]]) -> list[Ids]:
    return [np.array(source, np.uint16) for source in values]


SOURCES = as_sources([[5, 6, 7], [9, 4, 4, 10, 8, 5], [], [7], [10, 10], [6, 5, 4, 7, 8, 9, 10]])


def searched(
    model: EncoderDecoder,
    sources: Sequence[Ids] = SOURCES,
    *,
    beam_size: int,
    num_hypotheses: int | None = None,
    bound: int = 8,
    length_penalty: float = 1.0,
) -> list[list[Hypothesis]]:
    """As many hypotheses as beams, if it is not said how many."""
    return translate(
        model,
        sources,
        beam_size=beam_size,
        num_hypotheses=num_hypotheses or beam_size,
        length_penalty=length_penalty,
        max_tokens=[bound] * len(sources),
        device=CPU,
    )


@torch.no_grad()
def logprobs_after(model: EncoderDecoder, source: Ids, tokens: Sequence[int]) -> torch.Tensor:
    """log p [T + 1, V] after bos and each of the tokens, pad, bos and unk included."""
    padded, lengths = (torch.from_numpy(x) for x in pad_sources([source]))
    logits = model(padded, lengths, torch.tensor([[BOS_ID, *tokens]]))
    return torch.log_softmax(logits[0], dim=1)


def forced(model: EncoderDecoder, source: Ids, tokens: Sequence[int]) -> float:
    """log p of the tokens."""
    logprobs = logprobs_after(model, source, tokens)
    return sum(logprobs[t, token].item() for t, token in enumerate(tokens))


def greedy(model: EncoderDecoder, source: Ids, bound: int) -> tuple[int, ...]:
    """The likeliest token that has text, or eos, until eos."""
    tokens: list[int] = []
    while len(tokens) < bound and EOS_ID not in tokens:
        logprobs = logprobs_after(model, source, tokens)[-1]
        logprobs[[PAD_ID, BOS_ID, UNK_ID]] = -math.inf
        tokens.append(int(logprobs.argmax()))
    return tuple(tokens)


def targets(vocab_size: int, bound: int) -> Iterator[tuple[int, ...]]:
    """Every target that ends within the bound, eos counted."""
    yield (EOS_ID,)
    if bound > 1:
        for rest in targets(vocab_size, bound - 1):
            for token in range(UNK_ID + 1, vocab_size):
                yield (token, *rest)


# --- greedy -------------------------------------------------------------------------------------


@every_kind
def test_a_beam_of_one_is_the_greedy_loop(kind: dict[str, Any]) -> None:
    model = made(**kind)
    found = searched(model, beam_size=1, length_penalty=0.0)
    assert [x[0].tokens for x in found] == [greedy(model, source, 8) for source in SOURCES]
    assert all(len(x) == 1 for x in found)


@settings(deadline=None, max_examples=15)
@given(st.lists(lists, min_size=1, max_size=4), st.integers(1, 6))
def test_a_beam_of_one_is_the_greedy_loop_for_any_sources(
    values: list[list[int]], bound: int
) -> None:
    model, sources = made(), as_sources(values)
    found = searched(model, sources, beam_size=1, bound=bound, length_penalty=0.0)
    assert [x[0].tokens for x in found] == [greedy(model, source, bound) for source in sources]


@every_kind
def test_with_a_length_penalty_a_beam_of_one_goes_on_only_to_what_scores_better(
    kind: dict[str, Any],
) -> None:
    model = made(**kind)
    for source, hypotheses in zip(SOURCES, searched(model, beam_size=1), strict=True):
        tokens = greedy(model, source, 8)
        first = Hypothesis(tokens, forced(model, source, tokens))
        assert hypotheses[0].tokens == tokens or hypotheses[0].score(1.0) > first.score(1.0)


# --- beams --------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("bound", [1, 2, 3])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_a_wide_beam_finds_the_best_of_all_targets(
    kind: dict[str, Any], bound: int, length_penalty: float
) -> None:
    vocab_size = 7
    model = made(vocab_size, **kind)
    options: dict[str, Any] = {"bound": bound, "length_penalty": length_penalty}
    found = searched(model, beam_size=40, **options)
    for source, hypotheses in zip(SOURCES, found, strict=True):
        everything = {
            x: Hypothesis(x, forced(model, source, x)).score(length_penalty)
            for x in targets(vocab_size, bound)
        }
        best = max(everything, key=everything.__getitem__)
        assert hypotheses[0].tokens == best
        # And all of the others, in order.
        ended = [x for x in hypotheses if x.tokens[-1] == EOS_ID]
        assert {x.tokens for x in ended} == set(everything)
        assert hypotheses[: len(ended)] == ended
        scores = [x.score(length_penalty) for x in ended]
        assert scores == sorted(scores, reverse=True)
        assert (
            searched(model, [source], beam_size=40, num_hypotheses=1, **options)[0][0].tokens
            == best
        )


@every_kind
@pytest.mark.parametrize("beam_size", [1, 2, 5])
def test_a_hypothesis_has_the_logprob_that_the_model_gives_its_tokens(
    kind: dict[str, Any], beam_size: int
) -> None:
    model = made(**kind)
    for source, hypotheses in zip(SOURCES, searched(model, beam_size=beam_size), strict=True):
        for hypothesis in hypotheses:
            expected = forced(model, source, hypothesis.tokens)
            assert hypothesis.logprob == pytest.approx(expected, abs=1e-4)


@every_kind
@pytest.mark.parametrize("beam_size", [1, 4])
def test_results_do_not_depend_on_the_other_sources(kind: dict[str, Any], beam_size: int) -> None:
    model = made(**kind).double()
    together = searched(model, beam_size=beam_size)
    for source, hypotheses in zip(SOURCES, together, strict=True):
        alone = searched(model, [source], beam_size=beam_size)[0]
        assert [x.tokens for x in alone] == [x.tokens for x in hypotheses]
        assert [x.logprob for x in alone] == pytest.approx(
            [x.logprob for x in hypotheses], abs=1e-9
        )


def test_many_sources_are_decoded_in_parts_and_come_back_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = made()
    whole = searched(model, beam_size=2)
    monkeypatch.setattr(decoding, "_MAX_ROWS", 4)
    parts = searched(model, beam_size=2)
    assert [[x.tokens for x in found] for found in parts] == [
        [x.tokens for x in found] for found in whole
    ]


def test_fewer_hypotheses_than_beams_are_the_best_of_them() -> None:
    model = made()
    all_of_them = searched(model, beam_size=5, bound=3)
    for count in (1, 2):
        found = searched(model, beam_size=5, num_hypotheses=count, bound=3)
        assert found == [hypotheses[:count] for hypotheses in all_of_them]


@pytest.mark.parametrize("beam_size", [1, 2, 3, 6])
def test_hypotheses_are_different_at_most_as_many_as_beams_and_best_first(beam_size: int) -> None:
    for hypotheses in searched(made(), beam_size=beam_size):
        assert 1 <= len(hypotheses) <= beam_size
        assert len({x.tokens for x in hypotheses}) == len(hypotheses)
        for ended in (True, False):
            scores = [x.score(1.0) for x in hypotheses if (x.tokens[-1] == EOS_ID) is ended]
            assert scores == sorted(scores, reverse=True)


def test_tokens_without_text_are_never_written() -> None:
    model = made()
    with torch.no_grad():
        model.decoder.output.bias[[PAD_ID, BOS_ID, UNK_ID]] = 20.0
    for hypotheses in searched(model, beam_size=3):
        for hypothesis in hypotheses:
            assert not {PAD_ID, BOS_ID, UNK_ID} & set(hypothesis.tokens)


# --- length -------------------------------------------------------------------------------------


@pytest.mark.parametrize("beam_size", [1, 3])
def test_a_source_has_at_most_its_own_number_of_tokens(beam_size: int) -> None:
    model = made()
    with torch.no_grad():
        model.decoder.output.bias[EOS_ID] = -50.0  # it never ends of its own
    bounds = [3, 1, 7, 2, 5, 4]
    found = translate(model, SOURCES, beam_size=beam_size, max_tokens=bounds, device=CPU)
    for bound, hypotheses in zip(bounds, found, strict=True):
        assert {len(x.tokens) for x in hypotheses} == {bound}
        assert all(EOS_ID not in x.tokens for x in hypotheses)


def test_eos_is_the_last_token_and_counts() -> None:
    for hypotheses in searched(made(), beam_size=4, bound=5):
        for hypothesis in hypotheses:
            assert len(hypothesis.tokens) <= 5
            assert EOS_ID not in hypothesis.tokens[:-1]


def test_what_has_ended_comes_before_what_has_not() -> None:
    model = made()
    endings = [
        [x.tokens[-1] == EOS_ID for x in found] for found in searched(model, beam_size=6, bound=2)
    ]
    assert any(len(set(found)) == 2 for found in endings), endings
    assert all(found == sorted(found, reverse=True) for found in endings)


def test_the_length_penalty_prefers_longer_targets() -> None:
    short, long = Hypothesis((4, 2), -2.0), Hypothesis((4, 5, 6, 2), -3.0)
    assert short.score(0.0) > long.score(0.0)
    assert short.score(1.0) < long.score(1.0)
    assert long.score(1.0) == pytest.approx(-0.75)


@pytest.mark.parametrize(("ratio", "extra", "bound"), [(1.5, 3, 18), (0.25, 1, 3), (0.0, 7, 7)])
def test_the_bound_is_a_ratio_and_some_more(ratio: float, extra: int, bound: int) -> None:
    limits = EncoderDecoderLimits(
        max_source_tokens=10, max_tokens_ratio=ratio, max_tokens_extra=extra
    )
    assert limits.max_tokens(10) == bound


@pytest.mark.parametrize("training", [False, True])
def test_a_model_is_left_as_it_was(*, training: bool) -> None:
    model = made(dropout_output=0.5).train(training)
    assert searched(model, beam_size=2) == searched(model.eval(), beam_size=2)
    model.train(training)
    searched(model, beam_size=2)
    assert model.training is training


def test_no_sources_have_no_translations() -> None:
    assert searched(made(), [], beam_size=2) == []


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_one_beam_ends_where_the_end_is_the_likeliest_token(length_penalty: float) -> None:
    # Before, a longer target with a better mean went on past the end.
    model = made()
    rng = np.random.default_rng(1)
    for _ in range(20):
        source = rng.integers(4, 11, 4).astype(np.uint16)
        ((found,),) = translate(
            model,
            [source],
            beam_size=1,
            length_penalty=length_penalty,
            max_tokens=[12],
            device=torch.device("cpu"),
        )
        assert found.tokens == _greedy(model, source, 12)


def _greedy(model: EncoderDecoder, source: Ids, max_tokens: int) -> tuple[int, ...]:
    padded, lengths = pad_sources([source])
    tokens = [BOS_ID]
    with torch.no_grad():
        while len(tokens) <= max_tokens and tokens[-1] != EOS_ID:
            logits = model(
                torch.from_numpy(padded), torch.from_numpy(lengths), torch.tensor([tokens])
            )
            scores = logits[0, -1].clone()
            scores[[PAD_ID, BOS_ID, UNK_ID]] = -torch.inf
            tokens.append(int(scores.argmax()))
    return tuple(tokens[1:])
