"""The batch of rows that read known tokens (prompts, scored texts), one chunk in each run.

B batch, T time, V vocabulary.
"""

import math
from collections.abc import Sequence

import numpy as np

from service.bundle.arrays import Float32Array, Int64Array
from service.bundle.text import PAD_ID
from service.decoding.rows import Continuation, ReadRow, TokenDetails
from service.errors import ModelFailure
from service.runtime.language_model import LanguageModelSession, States

# Floats in one [B, T, V] result: limits the memory of a read, whatever the vocabulary.
_MAX_RESULT_FLOATS = 4 * 2**20
# Rows times tokens of one run: bounds the graph's memory, a few kilobytes for each.
_MAX_POSITIONS = 2048
# A run is at least this long if the chunk allows it, even if its shortest row ends earlier.
_MIN_CHUNK = 16


class ReadBatch:
    """Rows that read known tokens, one chunk in each run, each row from its own position."""

    def __init__(self, session: LanguageModelSession) -> None:
        self._session = session
        self.rows: list[ReadRow] = []
        self._states: States = ()  # of the rows that have run; the others join at the next run
        self._running = 0

    def add(self, row: ReadRow) -> None:
        """Add a row, which joins before the next run."""
        self.rows.append(row)

    def remove(self, gone: Sequence[ReadRow]) -> None:
        """Remove rows."""
        ids = {id(row) for row in gone}
        self._keep([i for i, row in enumerate(self.rows) if id(row) not in ids])

    def run(self, chunk_tokens: int) -> tuple[list[ReadRow], list[tuple[ReadRow, ModelFailure]]]:
        """Read up to `chunk_tokens` tokens per row; returns the rows that are done or failed.

        Raises what the session raises; then no row has moved.
        """
        self._join()
        time = self._time(chunk_tokens)
        tokens = np.full((len(self.rows), time), PAD_ID, np.int64)  # [B, T]
        targets = np.full_like(tokens, PAD_ID)
        lengths = np.empty(len(self.rows), np.int32)
        for i, row in enumerate(self.rows):
            length = min(row.remaining, time)
            piece = slice(row.position, row.position + length)
            lengths[i] = length
            tokens[i, :length] = row.tokens[piece]
            targets[i, :length] = row.targets[piece]
        if any(self._needs_distribution(row, time) for row in self.rows):
            logprobs, states = self._session.read(tokens, lengths, self._states)  # [B, T, V]
            picked = np.take_along_axis(logprobs, targets[..., None], axis=2)[..., 0]  # [B, T]
        else:
            logprobs = None
            picked, states = self._session.pick(tokens, lengths, targets, self._states)
        self._states = states
        done, failed = [], []
        for i, row in enumerate(self.rows):
            length = int(lengths[i])
            distributions = None if logprobs is None else logprobs[i, :length]  # [T, V]
            error = self._take(i, targets[i, :length], picked[i, :length], distributions)
            row.position += length
            if error is not None:
                failed.append((row, error))
            elif row.remaining == 0:
                done.append(row)
        self.remove([*done, *(row for row, _ in failed)])
        return done, failed

    def _join(self) -> None:
        """Stack the states of all rows that joined since the last run, at once."""
        coming = self.rows[self._running :]
        if not coming:
            return
        zeros = self._session.initial_states(1)
        parts = [zeros if row.start is None else row.start for row in coming]
        if self._running:
            parts.insert(0, self._states)
        self._states = tuple(np.concatenate(tensors) for tensors in zip(*parts, strict=True))
        self._running = len(self.rows)

    def _time(self, chunk_tokens: int) -> int:
        """Tokens to read: up to the end of the shortest row, so that little work is wasted."""
        remaining = [row.remaining for row in self.rows]
        floats = len(self.rows) * self._session.vocab_size
        fitting = max(1, min(_MAX_RESULT_FLOATS // floats, _MAX_POSITIONS // len(self.rows)))
        useful = min(max(min(remaining), _MIN_CHUNK), max(remaining))
        return min(useful, chunk_tokens, fitting)

    def _needs_distribution(self, row: ReadRow, time: int) -> bool:
        return row.detail_top is not None or (row.wants_continuation and row.remaining <= time)

    def _take(
        self,
        index: int,
        targets: Int64Array,
        picked: Float32Array,
        distributions: Float32Array | None,
    ) -> ModelFailure | None:
        """Give a row its part of a run: `targets` [T], `picked` [T], `distributions` [T, V]."""
        row = self.rows[index]
        counted = targets != PAD_ID
        # One by one and in order, so that the sum does not depend on the chunks.
        for logprob in picked[counted].tolist():
            row.logprob += logprob
        if not math.isfinite(row.logprob):
            return ModelFailure("the model gave a log-probability that is not finite")
        if row.detail_top is not None and distributions is not None:
            if not np.isfinite(distributions[counted]).all():
                return ModelFailure("the model gave a log-probability that is not finite")
            details = TokenDetails.of(distributions[counted], targets[counted], row.detail_top)
            row.details.append(details)
        if row.wants_continuation and row.remaining == len(targets) and distributions is not None:
            if not np.isfinite(distributions[-1]).all():
                return ModelFailure("the model gave a log-probability that is not finite")
            states = tuple(state[index : index + 1].copy() for state in self._states)
            row.continuation = Continuation(states, distributions[-1].copy())
        return None

    def _keep(self, indices: list[int]) -> None:
        if len(indices) == len(self.rows):
            return
        self.rows = [self.rows[i] for i in indices]
        staying = [i for i in indices if i < self._running]
        if len(staying) < self._running:
            self._states = tuple(state[staying] for state in self._states)
            self._running = len(staying)
