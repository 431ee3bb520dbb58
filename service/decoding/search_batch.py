"""A batch of searches: one step is one token for every row of all searches.

N sources, K rows of each (its width), B = N · K.

The sources of a batch have the same padded length, so that every row has the same bits alone and
batched, and the same width, as the decoder needs it. The K rows of a source are its beams or its
samples. A target to score has one row, with the same bits as a beam.
"""

from collections.abc import Sequence

import numpy as np

from service.bundle.arrays import Int64Array
from service.decoding.choosers import Beams, Chooser, GivenTargets, Samples
from service.decoding.search import Search
from service.decoding.search_rows import Move, SearchRows
from service.errors import ModelFailure
from service.runtime.encoder_decoder import Encoded, EncoderDecoderSession, Step


class SearchBatch:
    """Searches of one padded source length and one width."""

    def __init__(self, session: EncoderDecoderSession, width: int) -> None:
        self._session = session
        self._rows = SearchRows(width)
        self._choosers: list[Chooser] = []  # empty if they must be assigned again
        self._given: list[Search] = []  # searches whose next token is given

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
        stays = [i for i, search in enumerate(self.searches) if id(search) not in ids]
        if len(stays) < len(self.searches):
            self._keep(stays)

    def run(self) -> tuple[list[Search], list[tuple[Search, ModelFailure]]]:
        """One token for every row; the searches that are done, and those that failed, have left.

        Raises what the session raises; then no row has moved.
        """
        rows = self._rows
        attention = any(search.wants_attention for search in rows.searches)
        step = self._session.step(rows.tokens, rows.states, rows.memory, attention=attention)
        step, failed = self._without_failed(step)
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
        places = sorted(place for chooser in self._choosers for place in chooser.done())
        done = [rows.searches[place] for place in places]
        if any(search.position == len(search.forced) for search in self._given):
            self._choosers.clear()
        self.remove(done)
        for search in done:
            if search.listener is not None:
                search.listener.ended()
        return done, failed

    def _without_failed(self, step: Step) -> tuple[Step, list[tuple[Search, ModelFailure]]]:
        """Remove searches with NaN log-probabilities; return the step of the others."""
        if np.isfinite(step.logprobs).all():
            return step, []
        by_source = step.logprobs.reshape(len(self.searches), -1)
        is_finite = np.isfinite(by_source).all(axis=1)
        failed = [self.searches[place] for place in np.flatnonzero(~is_finite).tolist()]
        rows = self._keep(np.flatnonzero(is_finite).tolist())
        error = "the model gave a log-probability that is not finite"
        return step.some(rows), [(search, ModelFailure(error)) for search in failed]

    def _share_out(self) -> None:
        """Assign each search the chooser that its next step needs."""
        rows = self._rows
        given: list[int] = []
        samples: list[int] = []
        beams: list[int] = []
        for place, search in enumerate(rows.searches):
            free = beams if search.params is None else samples
            (given if search.position < len(search.forced) else free).append(place)
        self._given = [rows.searches[place] for place in given]
        if given:
            self._choosers.append(GivenTargets(rows, given))
        if samples:
            self._choosers.append(Samples(rows, samples, self._session.vocab_size))
        if beams:
            self._choosers.append(Beams(rows, beams))

    def _keep(self, places: list[int]) -> Int64Array:
        self._choosers.clear()
        return self._rows.keep(places)
