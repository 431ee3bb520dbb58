"""The runner of labelers: one run of bounded size in each iteration, of texts that share one.

S places of a run, L labels.
"""

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from service.bundle.arrays import Float32Array, Ids
from service.bundle.padding import padded_length
from service.bundle.text import PAD_ID
from service.errors import ModelFailure, ServiceError
from service.runtime.labeler import LabelerSession
from service.runtime.language_model import States
from service.scheduling.scheduler import run_failed

# Places in one run: limits its memory, and how long other texts wait for it. A text that is read
# whole may have more, and then runs alone.
_MAX_PLACES = 4096
# Floats of the log-probabilities of one run, likewise.
_MAX_FLOATS = 4 * 2**20
# Places that a text which is read forward takes in one run.
_CHUNK = 64

logger = logging.getLogger(__name__)


class PlaceListener(Protocol):
    """Hears of a text's places, in the worker's thread."""

    def took(self, logprobs: Float32Array) -> None:
        """log P of the labels of the next places, [places, L]; the array is not kept."""


@dataclass(slots=True, eq=False)
class LabelWork:
    """One text."""

    tokens: Ids  # [S] as the model reads them: bos and eos included, where it reads them
    start: States | None = None  # [1, …] each: read forward from there; None is the beginning
    listener: PlaceListener | None = None
    # Filled in by reading:
    position: int = 0
    logprobs: Float32Array | None = None  # [L] of the text, or after its last token
    states: States | None = None  # [1, …] each: after its last token, if it is read forward

    @property
    def rows(self) -> int:
        """One."""
        return 1

    @property
    def remaining(self) -> int:
        """Tokens still to read."""
        return len(self.tokens) - self.position

    @property
    def queued_tokens(self) -> int:
        """Tokens that it counts towards the queue's limit."""
        return len(self.tokens)

    @property
    def first_token_at(self) -> None:
        """It writes no token."""
        return

    @property
    def written_tokens(self) -> int:
        """It writes no token."""
        return 0


Ended = list[tuple[LabelWork, ServiceError | None]]


class LabelerRunner:
    """An iteration is one run, of texts that take as many places in it.

    Texts wait in a line for each number of places. The lines take turns, so that short texts wait
    for one run of each other line at most, however many long texts there are.
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
        self._used_rows += len(work)
        for text in work:
            self._wait(text)

    def run(self) -> Ended:
        """Read texts of the line whose turn it is; those that it returns have ended."""
        if not self._lines:
            return []
        places = next(iter(self._lines))
        line = self._lines.pop(places)
        most = min(_MAX_PLACES, _MAX_FLOATS // self._session.num_labels) // places
        texts = [line.popleft() for _ in range(min(len(line), max(1, most)))]
        if line:
            self._lines[places] = line  # after the others
        ended = self._read(places, texts)
        self._used_rows -= len(ended)
        return ended

    def drop(self, work: Sequence[LabelWork]) -> None:
        """Remove texts."""
        ids = {id(text) for text in work}
        lines = {
            places: deque(text for text in line if id(text) not in ids)
            for places, line in self._lines.items()
        }
        self._used_rows -= sum(map(len, self._lines.values())) - sum(map(len, lines.values()))
        self._lines = {places: line for places, line in lines.items() if line}

    def clear(self) -> None:
        """Drop all texts: the worker has ended."""
        self._lines.clear()
        self._used_rows = 0

    def _wait(self, text: LabelWork) -> None:
        """Put a text into its line."""
        places = padded_length(text.remaining)
        if self._session.reads_forward:
            places = min(places, _CHUNK)
        self._lines.setdefault(places, deque()).append(text)

    def _read(self, places: int, texts: Sequence[LabelWork]) -> Ended:
        """Read up to so many places of each text."""
        parts = [text.tokens[text.position : text.position + places] for text in texts]
        lengths = np.array([len(part) for part in parts], np.int32)
        if self._session.reads_forward:
            places = int(lengths.max())
        tokens = np.full((len(texts), places), PAD_ID, np.int64)
        for row, part in zip(tokens, parts, strict=True):
            row[: len(part)] = part
        try:
            logprobs, states = self._session.label(tokens, lengths, self._states(texts))
        except Exception:  # whatever the runtime raises fails the texts of this run only
            logger.exception("engine %s: a model run raised", self._name)
            return [(text, run_failed()) for text in texts]
        ended: Ended = []
        for i, (text, length) in enumerate(zip(texts, lengths.tolist(), strict=True)):
            found = logprobs[i, :length] if self._session.labels_places else logprobs[i : i + 1]
            text.position += length
            if not np.isfinite(found).all():
                failure = ModelFailure("the model gave a log-probability that is not finite")
                ended.append((text, failure))
                continue
            if text.listener is not None:
                text.listener.took(found)
            text.start = tuple(state[i : i + 1] for state in states)
            if text.remaining:
                self._wait(text)
            else:
                text.logprobs, text.states = found[-1].copy(), _owned(text.start)
                ended.append((text, None))
        return ended

    def _states(self, texts: Sequence[LabelWork]) -> States:
        """Where the texts stand, stacked."""
        zeros = self._session.initial_states(1)
        parts = [zeros if text.start is None else text.start for text in texts]
        return tuple(np.concatenate(tensors) for tensors in zip(*parts, strict=True))


def _owned(states: States) -> States:
    """Copies, so that no text keeps the states of those that it was read with."""
    return tuple(state.copy() for state in states)
