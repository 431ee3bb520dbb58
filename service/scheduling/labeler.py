"""The runner of labelers: each iteration is one run of bounded size, which several texts share.

N texts, S places of a run, L labels.
"""

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from service.bundle.arrays import Float32Array, Ids, Int32Array
from service.bundle.padding import padded_length
from service.bundle.text import PAD_ID
from service.errors import ModelFailure, ServiceError
from service.runtime.labeler import LabelerSession
from service.runtime.language_model import States
from service.scheduling.failures import run_failed

# Places in one run: limits its memory, and how long other texts wait for it. A text that is read
# whole may have more, and then runs alone.
_MAX_PLACES = 4096
# Likewise, log-probabilities in one run.
_MAX_FLOATS = 4 * 2**20
# Places that a text takes in one run if it is read forward.
READ_CHUNK = 64
# Additions that the labels of one run may take afterwards, likewise: about half a second. A text
# that takes more is alone.
MAX_RUN_SUMS = 2**24

logger = logging.getLogger(__name__)


class PlaceListener(Protocol):
    """Hears of a text's places, in the worker's thread."""

    def took(self, logprobs: Float32Array) -> None:
        """log P of the labels of the next places, [places, L]; the array is not kept."""


@dataclass(slots=True, eq=False)
class LabelWork:
    """Texts of one request that are read together; one text, if it is read in chunks."""

    tokens: Ids  # [N, S] as the model reads them: bos and eos included, where it reads them
    lengths: Int32Array  # [N]
    start: States | None = None  # [N, …] each: read forward from there; None is the beginning
    listeners: Sequence[PlaceListener] = ()  # one for each text, or none
    sums: int = 0  # additions that the listeners take
    # Filled in by reading:
    position: int = 0
    logprobs: Float32Array | None = None  # [N, L] of the texts, or after their last tokens
    states: States | None = None  # [N, …] each: after the last tokens, if they are read forward
    rows: int = field(init=False)
    queued_tokens: int = field(init=False)
    first_token_at: None = None  # it writes none
    written_tokens: int = 0

    def __post_init__(self) -> None:
        self.rows = len(self.lengths)
        self.queued_tokens = int(self.lengths.sum())

    @property
    def remaining(self) -> int:
        """Tokens of the longest text still to read."""
        return int(self.lengths.max()) - self.position


Ended = list[tuple[LabelWork, ServiceError | None]]


class LabelerRunner:
    """An iteration is one run, of texts that all take the same number of places.

    There is a line of waiting texts for each number of places. The lines take turns, so that short
    texts wait for at most one run of every other line, however many long texts there are.
    """

    def __init__(self, session: LabelerSession, *, name: str) -> None:
        self._session = session
        self._name = name
        self._lines: dict[int, deque[LabelWork]] = {}  # by places; the first is next
        self._used_rows = 0

    @property
    def used_rows(self) -> int:
        """Texts that it holds now."""
        return self._used_rows

    @property
    def free(self) -> bool:
        """Whether it holds nothing."""
        return not (self._lines or self._used_rows)

    def admit(self, work: Sequence[LabelWork]) -> None:
        """Take texts in."""
        for piece in work:
            self._used_rows += piece.rows
            self._wait(piece)

    def run(self) -> Ended:
        """Read texts of the line whose turn it is; those that it returns have ended."""
        if not self._lines:
            return []
        places = next(iter(self._lines))
        line = self._lines.pop(places)
        room = min(_MAX_PLACES, _MAX_FLOATS // self._session.num_labels) // places
        works = [line.popleft()]
        room -= works[0].rows
        sums = MAX_RUN_SUMS - works[0].sums
        while line and line[0].rows <= room and line[0].sums <= sums:
            works.append(line.popleft())
            room -= works[-1].rows
            sums -= works[-1].sums
        if line:
            self._lines[places] = line  # after the others
        ended = self._read(places, works)
        self._used_rows -= sum(work.rows for work, _ in ended)
        return ended

    def drop(self, work: Sequence[LabelWork]) -> None:
        """Remove texts."""
        ids = {id(piece) for piece in work}
        for places, line in list(self._lines.items()):
            self._used_rows -= sum(piece.rows for piece in line if id(piece) in ids)
            kept = deque(piece for piece in line if id(piece) not in ids)
            if kept:
                self._lines[places] = kept
            else:
                del self._lines[places]

    def clear(self) -> None:
        """Drop all texts: the worker has ended."""
        self._lines.clear()
        self._used_rows = 0

    def _wait(self, work: LabelWork) -> None:
        """Put texts into their line."""
        places = padded_length(work.remaining)
        if self._session.reads_forward:
            places = min(places, READ_CHUNK)
        self._lines.setdefault(places, deque()).append(work)

    def _read(self, places: int, works: Sequence[LabelWork]) -> Ended:
        """Read up to so many places of each text."""
        parts = [work.tokens[:, work.position : work.position + places] for work in works]
        lengths = np.concatenate([work.lengths - work.position for work in works])
        lengths = np.minimum(lengths, places)
        tokens = np.full((len(lengths), places), PAD_ID, np.int64)
        bounds = np.cumsum([0, *(work.rows for work in works)]).tolist()
        for part, start, end in zip(parts, bounds, bounds[1:], strict=False):
            tokens[start:end, : part.shape[1]] = part
        if self._session.reads_forward:
            tokens = tokens[:, : lengths.max()]
        try:
            logprobs, states = self._session.label(tokens, lengths, self._states(works))
        except Exception:  # whatever the runtime raises fails the texts of this run only
            logger.exception("engine %s: a model run raised", self._name)
            return [(work, run_failed()) for work in works]
        ended: Ended = []
        for work, start, end in zip(works, bounds, bounds[1:], strict=False):
            rows = slice(start, end)
            is_sound = self._take(work, logprobs[rows], lengths[rows])
            work.position += places
            work.states = tuple(state[rows].copy() for state in states)
            if not is_sound:
                failure = ModelFailure("the model gave a log-probability that is not finite")
                ended.append((work, failure))
            elif work.remaining <= 0:
                ended.append((work, None))
            else:
                work.start = work.states
                self._wait(work)
        return ended

    def _take(self, work: LabelWork, logprobs: Float32Array, lengths: Int32Array) -> bool:
        """Give work its part of a run; false if that is not finite."""
        if not self._session.labels_places:
            work.logprobs = logprobs
            return bool(np.isfinite(logprobs).all())
        work.logprobs = logprobs[np.arange(len(lengths)), lengths - 1]
        is_sound = bool(np.isfinite(work.logprobs).all())
        for listener, row, length in zip(
            work.listeners, logprobs, lengths.tolist(), strict=bool(work.listeners)
        ):
            places = row[:length]
            if not np.isfinite(places).all():
                return False
            listener.took(places)
        return is_sound

    def _states(self, works: Sequence[LabelWork]) -> States:
        """Where the texts stand, stacked."""
        parts = [
            self._session.initial_states(work.rows) if work.start is None else work.start
            for work in works
        ]
        return tuple(np.concatenate(tensors) for tensors in zip(*parts, strict=True))
