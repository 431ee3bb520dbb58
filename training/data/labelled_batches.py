"""Batches of labelled texts.

B batch, S places (bos, the tokens and, where texts are read from both ends, eos), L labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from service.bundle.labeler import Labels
from service.bundle.text import BOS_ID, EOS_ID
from training.data.labelled import Ids, LabelIds, LabelledSplit
from training.data.shuffled import IdArray, ShuffledBatches, padded

NO_LABEL = -1  # at places whose label does not count: bos, eos, pads

LabelArray: TypeAlias = IdArray | npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LabelledBatch:
    """Padded texts and their labels."""

    tokens: IdArray  # [B, S]
    lengths: IdArray  # [B] bos and eos counted
    # [B] ids; or, if texts may have several labels, [B, L] float32, 1 for each label that a text
    # has; or [B, S] ids of the places' labels, where character i of a text is at place i + 1.
    labels: LabelArray

    @property
    def counted(self) -> int:
        """Labels that count; if texts may have several labels, all L of each text."""
        return int((self.labels != NO_LABEL).sum())


def pad_texts(tokens: Sequence[Ids], *, forward: bool = False) -> tuple[IdArray, IdArray]:
    """Texts between bos and eos, [B, S], and their lengths, [B]; read `forward`, without eos."""
    end = [] if forward else [EOS_ID]
    rows = [[BOS_ID, *ids.tolist(), *end] for ids in tokens]
    return padded(rows), np.array([len(row) for row in rows], np.int64)


def labelled_batch(
    split: LabelledSplit, indices: Sequence[int], labels: Labels, *, forward: bool = False
) -> LabelledBatch:
    """The texts at these indices."""
    tokens, lengths = pad_texts([split.tokens[i] for i in indices], forward=forward)
    found = [split.labels[i] for i in indices]
    if labels.several:
        return LabelledBatch(tokens, lengths, _many_hot(found, len(labels.names)))
    if labels.scope == "text":
        return LabelledBatch(tokens, lengths, np.array([ids[0] for ids in found], np.int64))
    places = np.full_like(tokens, NO_LABEL)
    for row, ids in zip(places, found, strict=True):
        row[1 : len(ids) + 1] = ids
    return LabelledBatch(tokens, lengths, places)


class LabelledBatches:
    """An endless walk over a split: every text once in each epoch, in a new order each time."""

    def __init__(
        self,
        split: LabelledSplit,
        labels: Labels,
        batch_size: int,
        *,
        seed: int,
        forward: bool = False,
    ) -> None:
        self._split = split
        self._labels = labels
        self._forward = forward
        lengths = [len(ids) for ids in split.tokens]
        self._walk = ShuffledBatches(lambda _: lengths, batch_size, seed=seed)

    def next(self) -> LabelledBatch:
        """The next batch; the last one of a pool may be smaller."""
        return labelled_batch(self._split, self._walk.next(), self._labels, forward=self._forward)

    def state(self) -> dict[str, Any]:
        """What `restore` needs to continue from here; JSON."""
        return self._walk.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken."""
        self._walk.restore(state)


def by_length(split: LabelledSplit, batch_size: int) -> list[list[int]]:
    """Indices of all texts in batches of similar lengths, shortest first, for evaluation."""
    order = sorted(range(len(split)), key=lambda i: len(split.tokens[i]))
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def _many_hot(labels: Sequence[LabelIds], count: int) -> npt.NDArray[np.float32]:
    found = np.zeros((len(labels), count), np.float32)
    for row, ids in zip(found, labels, strict=True):
        row[ids] = 1.0
    return found
