"""The loss of an encoder-decoder on a split, and the bound on the length of its targets."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.bundle.text import PAD_ID
from tests.training.helpers import (
    encoder_decoder_task_of,
    pair_split_of,
    tiny_encoder_decoder_trainer,
)
from training.data.pair_batches import pair_batch
from training.evaluation import encoder_decoder as evaluation
from training.evaluation.encoder_decoder import length_limits, mean_loss

CPU = torch.device("cpu")
lists = st.lists(st.integers(3, 9), max_size=40)


def test_the_validation_loss_is_the_mean_over_all_counted_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_encoder_decoder_trainer(tmp_path)
    split = encoder_decoder_task_of(run).corpus.train
    batch = pair_batch(split, range(len(split)))
    counted = torch.from_numpy(batch.targets)
    parts = (batch.sources, batch.lengths, batch.tokens)
    with torch.no_grad():
        logits = run.model(*(torch.from_numpy(x) for x in parts))
        logprobs = torch.log_softmax(logits, dim=2)  # [B, T, V]
        picked = logprobs.gather(2, counted.unsqueeze(2)).squeeze(2)
    wanted = -picked[counted != PAD_ID].double().mean().item()
    for positions in (8192, 50):  # one batch, or many
        monkeypatch.setattr(evaluation, "_BATCH_TOKENS", positions)
        assert mean_loss(run.model, split, CPU) == pytest.approx(wanted, rel=1e-6)


@given(st.lists(st.tuples(lists, lists), min_size=1, max_size=10))
def test_the_limit_holds_for_every_pair_it_is_made_from(
    pairs: list[tuple[list[int], list[int]]],
) -> None:
    limits = length_limits(pair_split_of(pairs), 40)
    for source, target in pairs:
        assert len(target) + 1 < limits.max_tokens(len(source) + 1)


def test_one_long_target_does_not_stretch_all_others() -> None:
    pairs = [([3] * 10, [4] * 10)] * 20 + [([3], [4] * 80)]
    assert length_limits(pair_split_of(pairs), 40).max_tokens(101) < 450


def test_of_the_limits_that_hold_the_least_is_taken() -> None:
    pairs = [([3] * n, [4] * (n + extra)) for n in range(5, 15) for extra in (0, 4)] + [
        ([3] * 6, [4] * 18)
    ]
    limits = length_limits(pair_split_of(pairs), 40)
    # By ratio alone the last pair would ask for 19 / 7 of every source.
    assert limits.max_tokens(15) < 2 * 15 + 10
    assert limits.max_tokens(41) > 41 + 10


def test_the_ratio_is_that_of_the_means_at_least() -> None:
    limits = length_limits(pair_split_of([([3] * 9, [4] * 39)] * 3), 40)
    assert limits.max_tokens_ratio == 4.0
    assert limits.max_tokens_extra == 10
