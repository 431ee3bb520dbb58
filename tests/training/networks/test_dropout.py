"""Variational dropout: one mask for a sequence, none outside of training."""

import pytest
import torch

from training.networks.dropout import Dropout


def test_a_mask_is_one_for_all_time_steps_and_later_calls() -> None:
    dropout = Dropout(0.5, torch.Generator().manual_seed(1))
    first = dropout(torch.ones(6, 3, 8))  # [T, B, E]
    assert torch.equal(first, first[:1].expand_as(first))
    assert torch.equal(dropout(torch.ones(1, 3, 8)), first[:1])
    assert set(first.flatten().tolist()) == {0.0, 2.0}
    assert not torch.equal(first[0, 0], first[0, 1])


def test_the_mean_is_kept() -> None:
    kept = Dropout(0.3, torch.Generator().manual_seed(1))(torch.ones(1, 200, 100)).mean().item()
    assert kept == pytest.approx(1.0, abs=0.02)


def test_nothing_is_dropped_or_drawn_outside_of_training() -> None:
    generator = torch.Generator().manual_seed(1)
    before = generator.get_state()
    x = torch.ones(6, 3, 8)
    assert Dropout(0.5, generator, training=False)(x) is x
    assert Dropout(0.0, generator)(x) is x
    assert torch.equal(generator.get_state(), before)
