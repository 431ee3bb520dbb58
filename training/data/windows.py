"""Windows for truncated backpropagation through time: lanes that walk through documents.

B batch (lanes), T time. A lane reads its document window by window and carries the recurrent
state from each to the next; the state is reset where a document starts. The position of a lane is a
few integers, which makes an exact resume possible.
"""

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from service.bundle.text import BOS_ID, EOS_ID, PAD_ID
from training.data.corpus import Split

# One row of a window: tokens, targets, and whether it starts a text.
_Row: TypeAlias = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], bool]


@dataclass(frozen=True, slots=True)
class Window:
    """The input of one step. Short rows are padded; pads are not counted as targets."""

    tokens: npt.NDArray[np.int64]  # [B, T]
    targets: npt.NDArray[np.int64]  # [B, T]
    reset: npt.NDArray[np.bool_]  # [B] the row starts a document: its state is zero


@dataclass(slots=True)
class _Lane:
    position: int  # of the next input token in ids
    end: int  # of the document
    document: int
    fresh: bool  # the next input starts a text: reset the state, and read bos


class Windows:
    """An endless walk over a split, which `state` and `restore` can resume.

    `order="stream"`: lanes start evenly spaced and each reads on through all documents and around
    the end, so its state is right even where another lane has started. `order="shuffle"`: a lane at
    the end of its document takes the next one from a permutation, a new one for each epoch.
    `restart_probability` is the chance that a window ends the text at its last line end: eos is the
    target there, and the next window begins with bos. From this, a model whose corpus begins and
    ends once learns how a text begins and ends.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        bptt_len: int,
        *,
        order: str = "stream",
        seed: int = 0,
        restart_probability: float = 0.0,
        line_end_id: int | None = None,
    ) -> None:
        self._split = split
        self._bptt_len = bptt_len
        self._order = order
        self._seed = seed
        self._restart_probability = restart_probability if line_end_id is not None else 0.0
        self._line_end_id = line_end_id
        self._windows_read = 0
        self._documents_taken = 0
        # [B] where each row's first target is in the split's ids, for the last window.
        self.places = np.zeros(batch_size, np.int64)
        self._lanes: list[_Lane] = []
        for lane in range(batch_size):
            if order == "stream":
                self._lanes.append(self._lane_at(lane * len(split.ids) // batch_size))
            else:
                self._lanes.append(self._lane_of(self._next_shuffled()))

    def next(self) -> Window:
        """The next window of every lane."""
        rows = [self._read(lane, index) for index, lane in enumerate(self._lanes)]
        self._windows_read += 1
        return _pad(rows)

    def state(self) -> dict[str, Any]:
        """What `restore` needs to continue from here; JSON."""
        return {
            "windows_read": self._windows_read,
            "documents_taken": self._documents_taken,
            "lanes": [[x.position, x.end, x.document, int(x.fresh)] for x in self._lanes],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken."""
        self._windows_read = state["windows_read"]
        self._documents_taken = state["documents_taken"]
        self._lanes = [_Lane(p, e, d, bool(f)) for p, e, d, f in state["lanes"]]

    def _read(self, lane: _Lane, index: int) -> _Row:
        size = min(self._bptt_len, lane.end - 1 - lane.position)
        piece = np.asarray(self._split.ids[lane.position : lane.position + size + 1], np.int64)
        tokens, targets = piece[:-1].copy(), piece[1:].copy()
        fresh = lane.fresh
        if fresh:
            tokens[0] = BOS_ID
        self.places[index] = lane.position + 1
        lane.position += size
        lane.fresh = False
        if self._restarts(index):
            # Not at the end of the document: the rest would be an empty text.
            cut_here = (targets[:-1] == self._line_end_id) & (targets[1:] != EOS_ID)
            line_ends = np.flatnonzero(cut_here)
            if len(line_ends):
                last = int(line_ends[-1])
                # The line end is an input and eos its target; the next window reads bos instead.
                tokens, targets = tokens[: last + 2], targets[: last + 2].copy()
                targets[-1] = EOS_ID
                lane.position += last + 1 - size
                lane.fresh = True
        if lane.position == lane.end - 1:
            self._advance(lane)
        return tokens, targets, fresh

    def _restarts(self, index: int) -> bool:
        if self._restart_probability == 0.0:
            return False
        key = (self._seed, self._windows_read, index)
        return float(np.random.default_rng(key).random()) < self._restart_probability

    def _advance(self, lane: _Lane) -> None:
        if self._order == "stream":
            document = (lane.document + 1) % self._split.documents
        else:
            document = self._next_shuffled()
        following = self._lane_of(document)
        lane.position, lane.end = following.position, following.end
        lane.document, lane.fresh = document, True

    def _next_shuffled(self) -> int:
        epoch, index = divmod(self._documents_taken, self._split.documents)
        self._documents_taken += 1
        return _permuted(index, self._split.documents, (self._seed, epoch))

    def _lane_of(self, document: int) -> _Lane:
        starts = self._split.starts
        return _Lane(int(starts[document]), int(starts[document + 1]), document, True)

    def _lane_at(self, offset: int) -> _Lane:
        document = int(np.searchsorted(self._split.starts, offset, side="right")) - 1
        lane = self._lane_of(document)
        # The last input of a document is its last character: eos is only ever a target.
        lane.position = min(max(offset, lane.position), lane.end - 2)
        lane.fresh = lane.position == int(self._split.starts[document])
        return lane


class SequentialWindows:
    """An iterator of windows over all documents in order; rows without a document are padding."""

    def __init__(self, split: Split, batch_size: int, bptt_len: int) -> None:
        self._split = split
        self._bptt_len = bptt_len
        self._next_document = 0
        self._lanes: list[tuple[int, int] | None] = [None] * min(batch_size, split.documents)
        # [B] where each row's first target is in the split's ids, for the last window.
        self.places = np.zeros(len(self._lanes), np.int64)

    def __iter__(self) -> "SequentialWindows":
        return self

    def __next__(self) -> Window:
        rows = [self._read(index) for index in range(len(self._lanes))]
        if all(len(tokens) == 0 for tokens, _, _ in rows):
            raise StopIteration
        return _pad(rows)

    def _read(self, index: int) -> _Row:
        lane = self._lanes[index]
        fresh = lane is None
        if lane is None:
            if self._next_document == self._split.documents:
                return np.empty(0, np.int64), np.empty(0, np.int64), True
            starts = self._split.starts[self._next_document : self._next_document + 2]
            lane = int(starts[0]), int(starts[1])
            self._next_document += 1
        position, end = lane
        size = min(self._bptt_len, end - 1 - position)
        piece = np.asarray(self._split.ids[position : position + size + 1], np.int64)
        self.places[index] = position + 1
        position += size
        self._lanes[index] = None if position == end - 1 else (position, end)
        return piece[:-1], piece[1:], fresh


def _pad(rows: list[_Row]) -> Window:
    longest = max(len(tokens) for tokens, _, _ in rows)
    shape = (len(rows), longest)
    tokens, targets = np.full(shape, PAD_ID, np.int64), np.full(shape, PAD_ID, np.int64)
    for index, (row_tokens, row_targets, _) in enumerate(rows):
        tokens[index, : len(row_tokens)] = row_tokens
        targets[index, : len(row_targets)] = row_targets
    return Window(tokens, targets, np.array([fresh for _, _, fresh in rows]))


def _permuted(index: int, size: int, key: tuple[int, int]) -> int:
    """Position `index` of a permutation of range(size), without holding the permutation.

    An affine map with a random multiplier: it breaks up the order of a sorted file, and takes
    constant memory for any number of documents.
    """
    rng = np.random.default_rng(key)
    offset, multiplier = (int(x) for x in rng.integers(0, size, 2))
    while math.gcd(multiplier, size) != 1:
        multiplier = (multiplier + 1) % size if size > 1 else 1
    return (multiplier * index + offset) % size
