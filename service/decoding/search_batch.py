"""A batch of searches: one step is one token for every row of all searches.

N sources, K rows of each (its width), B = N · K.

The sources of a batch have the same padded length, so that every row has the same bits alone and
batched, and the same width, as the decoder needs it. The K rows of a source are its beams or its
samples. A target to score has one row, with the same bits as a beam.
"""

from collections.abc import Sequence

import numpy as np

from service.bundle.arrays import BoolArray, Int64Array
from service.decoding.choosers import Beams, Chooser, GivenTargets, Samples
from service.decoding.search import Search
from service.decoding.search_rows import Move, SearchRows
from service.errors import ModelFailure
from service.runtime.encoder_decoder import Encoded, EncoderDecoderSession, Step

# A run of its own costs as much as this many rows more in the run of the others (measured).
_COPIES = 16

# Rows in one run: the tensors of more rows do not stay in a processor's cache (measured).
_MOST_ROWS = 340


class SearchBatch:
    """Searches of one padded source length and one width."""

    def __init__(self, session: EncoderDecoderSession, width: int) -> None:
        self._session = session
        self._rows = SearchRows(width)
        self._choosers: list[Chooser] = []  # empty if they must be assigned again

    @property
    def searches(self) -> list[Search]:
        """The searches that continue."""
        return self._rows.searches

    def add(self, searches: Sequence[Search], encoded: Encoded) -> None:
        """Add searches whose sources were encoded together."""
        self._rows.add(searches, encoded)
        self._choosers.clear()

    def remove(self, gone: Sequence[Search]) -> None:
        """Remove searches."""
        ids = {id(search) for search in gone}
        stays = np.array([id(search) not in ids for search in self.searches])
        if not stays.all():
            self._keep(stays)

    def run(self) -> tuple[list[Search], list[tuple[Search, ModelFailure]]]:
        """One token for every row; the searches that are done, and those that failed, have left.

        Raises what the session raises; then no row has moved.
        """
        rows = self._rows
        step, failed = self._without_failed(self._step())
        if not rows.searches:
            return [], failed
        if not self._choosers:
            self._share_out()
        move = Move.of(step, rows.width)
        for chooser in self._choosers:
            chooser.choose(move)
        rows.advance(move, step.states)
        for chooser in self._choosers:
            chooser.report()
        is_done = np.zeros(len(rows.searches), np.bool_)
        for chooser in self._choosers:
            is_done[chooser.done()] = True
        done = [rows.searches[place] for place in np.flatnonzero(is_done).tolist()]
        if (rows.positions == rows.forced).any():
            self._choosers.clear()
        if done:
            self._keep(~is_done)
        for search in done:
            if search.listener is not None:
                search.listener.ended()
        return done, failed

    def _step(self) -> Step:
        """The model's output for every row.

        The K rows of a source that has not begun are alike: one of them runs for all.
        """
        rows, width = self._rows, self._rows.width
        count, new = len(rows.searches), rows.new
        if new < count and new * (width - 1) < _COPIES:
            new = 0
        attention = bool(rows.attends.any())
        parts = _parts(0, count - new, 1, width) + _parts(count - new, count, width, width)
        steps = []
        for first, last, every in parts:
            chosen = slice(first * width, last * width, every)
            memory = tuple(tensor[first:last] for tensor in rows.memory)
            states = rows.states(chosen)
            step = self._session.step(rows.tokens[chosen], states, memory, attention=attention)
            steps.append(step.repeated(every))
        return steps[0] if len(steps) == 1 else Step.joined(steps)

    def _without_failed(self, step: Step) -> tuple[Step, list[tuple[Search, ModelFailure]]]:
        """Remove searches with NaN log-probabilities; return the step of the others."""
        if np.isfinite(step.logprobs).all():
            return step, []
        by_source = step.logprobs.reshape(len(self.searches), -1)
        is_finite = np.asarray(np.isfinite(by_source).all(axis=1))
        failed = [self.searches[place] for place in np.flatnonzero(~is_finite).tolist()]
        rows = self._keep(is_finite)
        error = "the model gave a log-probability that is not finite"
        return step.some(rows), [(search, ModelFailure(error)) for search in failed]

    def _share_out(self) -> None:
        """Assign each search the chooser that its next step needs."""
        rows = self._rows
        is_given = rows.positions < rows.forced
        given = np.flatnonzero(is_given)
        samples = np.flatnonzero(rows.is_sampled & ~is_given)
        beams = np.flatnonzero(~(rows.is_sampled | is_given))
        if len(given):
            self._choosers.append(GivenTargets(rows, given))
        if len(samples):
            self._choosers.append(Samples(rows, samples, self._session.vocab_size))
        if len(beams):
            self._choosers.append(Beams(rows, beams))

    def _keep(self, stays: BoolArray) -> Int64Array:
        self._choosers.clear()
        return self._rows.keep(stays)


def _parts(first: int, last: int, every: int, width: int) -> list[tuple[int, int, int]]:
    """The sources of each run: from the first to before the last, every so many of their rows."""
    runs = -(-(last - first) * width // (every * _MOST_ROWS))
    share = -(-(last - first) // max(1, runs))
    return [(i, min(i + share, last), every) for i in range(first, last, max(1, share))]
