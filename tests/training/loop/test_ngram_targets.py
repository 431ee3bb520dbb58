"""What an n-gram model of the other texts expects, and how much of a target that is."""

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from service.bundle.text import BOS_ID, EOS_ID, PAD_ID
from tests.training.helpers import task_of, tiny_trainer
from training.data.corpus import Split
from training.errors import ConfigError
from training.loop import ngram_targets as module
from training.loop.ngram_targets import ngram_targets

VOCAB_SIZE = 9


def split_of(*texts: list[int]) -> Split:
    documents = [[BOS_ID, *text, EOS_ID] for text in texts]
    starts = np.cumsum([0, *map(len, documents)])
    return Split(np.array(list(chain(*documents)), np.uint16), starts)


@pytest.mark.parametrize(
    "texts", [[[4, 5, 6]] * 40, [[4, 5, 6, 7] * 300], [[4]] * 9 + [[5, 6] * 99]]
)
def test_a_distribution_stands_at_every_place(texts: list[list[int]]) -> None:
    found = ngram_targets(split_of(*texts), VOCAB_SIZE)
    assert np.allclose(found.sum(axis=1), 1.0, atol=1e-5)
    assert not found[:, [PAD_ID, BOS_ID]].any()
    split = split_of(*texts)
    inside = np.flatnonzero(np.asarray(split.ids) != BOS_ID)
    # What repeats is expected.
    assert np.median(found[inside, split.ids[inside]]) > 0.4


def test_a_text_is_told_by_the_others_and_not_by_itself() -> None:
    common, rare = [4, 5, 6], [7, 8, 7, 8, 7, 8]
    split = split_of(*[common] * 60, rare)
    found = ngram_targets(split, VOCAB_SIZE)
    begin = int(split.starts[-2])
    own = found[np.arange(begin + 1, begin + 7), rare]
    assert own.max() < 0.1
    # With a twin elsewhere, it is known.
    split = split_of(*[common] * 60, *[rare] * 30)
    found = ngram_targets(split, VOCAB_SIZE)
    begin = int(split.starts[-2])
    assert found[np.arange(begin + 2, begin + 7), rare[1:]].min() > 0.5


def test_a_long_text_is_refused_with_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_VALUES", 900)
    with pytest.raises(ConfigError, match="a vocabulary of 9, at most 100 are allowed"):
        ngram_targets(split_of([4] * 200), VOCAB_SIZE)


def gradient_and_loss(folder: Path, **training: Any) -> tuple[float, float]:
    """The gradient's size, and the loss that is told, of one step."""
    run = tiny_trainer(folder, training={"bptt_len": 12, "batch_size": 2, **training})
    loss, _ = task_of(run).backward()
    size = sum(float(x.grad.square().sum()) for x in run.model.parameters() if x.grad is not None)
    return size, loss


def test_the_loss_is_that_of_the_text_and_the_gradient_that_of_both(tmp_path: Path) -> None:
    plain, loss = gradient_and_loss(tmp_path / "a")
    mixed, same = gradient_and_loss(tmp_path / "b", ngram_targets=0.5)
    assert same == pytest.approx(loss, rel=1e-6)
    assert mixed != pytest.approx(plain, rel=1e-3)


def test_a_share_of_the_target_is_the_distribution_that_is_told(tmp_path: Path) -> None:
    run = tiny_trainer(tmp_path, training={"bptt_len": 12, "batch_size": 2, "ngram_targets": 0.3})
    task = task_of(run)
    tokens = torch.tensor([[1, 5, 6], [1, 7, 4]])
    targets = torch.tensor([[5, 6, 2], [7, 4, 2]])
    told = torch.zeros(2, 3, task.vocab_size)
    told[0, :, 4] = 1.0  # of the second row nothing is told
    reset = torch.tensor([True, True])
    (share,) = task.shares(tokens, targets, reset, 6, told)
    objective, _ = share(run.model, torch.Generator())
    logits, _ = run.model(tokens, run.model.initial_states(2), torch.Generator())
    logprobs = torch.log_softmax(logits, dim=2)
    own = -logprobs.gather(2, targets.unsqueeze(2)).squeeze(2)
    first = 0.7 * own[0].sum() - 0.3 * logprobs[0, :, 4].sum()
    wanted = (first + own[1].sum()) / 6
    assert objective.item() == pytest.approx(wanted.item(), rel=1e-5)
