"""Rows and batches: what steps together, and how a row joins and leaves between two steps.

B batch, T time, V vocabulary. A row is one text being read or one choice being written. A batch
stacks its rows' states; a model run gives the states that the next run takes, so that nothing is
copied while the same rows stay.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from service.bundle import EOS_ID, PAD_ID
from service.errors import ModelFailure
from service.sampling import NOISE_BLOCK, SamplingParams, noise_block, sample
from service.session import FloatArray, Session, States

Ids: TypeAlias = npt.NDArray[np.uint16]

# Floats of one [B, T, V] result: bounds the memory of a read, whatever the vocabulary.
_MAX_RESULT_FLOATS = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Continuation:
    """Where a row stands: its states, and log p [V] of its next token."""

    states: States  # [1, …] each
    logprobs: FloatArray  # [V]


@dataclass(frozen=True, slots=True)
class TokenDetails:
    """What a read tells about each counted token; T is the number of tokens."""

    logprob: FloatArray  # [T] nats
    entropy: npt.NDArray[np.float64]  # [T] nats
    rank: npt.NDArray[np.int64]  # [T] 1 is the likeliest
    top_ids: npt.NDArray[np.int64]  # [T, K]
    top_logprobs: FloatArray  # [T, K] nats

    @classmethod
    def of(cls, logprobs: FloatArray, targets: npt.NDArray[np.int64], top: int) -> "TokenDetails":
        """Details of `targets` [T] under `logprobs` [T, V]."""
        exact = logprobs.astype(np.float64)
        picked = np.take_along_axis(logprobs, targets[:, None], axis=1)  # [T, 1]
        order = np.argsort(-logprobs, axis=1, kind="stable")[:, :top]  # [T, K]
        return cls(
            logprob=picked[:, 0],
            entropy=-(np.exp(exact) * exact).sum(axis=1),
            rank=1 + (logprobs > picked).sum(axis=1),
            top_ids=order,
            top_logprobs=np.take_along_axis(logprobs, order, axis=1),
        )

    @classmethod
    def joined(cls, parts: Sequence["TokenDetails"]) -> "TokenDetails":
        """The parts one after another."""
        return cls(
            logprob=np.concatenate([part.logprob for part in parts]),
            entropy=np.concatenate([part.entropy for part in parts]),
            rank=np.concatenate([part.rank for part in parts]),
            top_ids=np.concatenate([part.top_ids for part in parts]),
            top_logprobs=np.concatenate([part.top_logprobs for part in parts]),
        )


@dataclass(slots=True)
class ReadRow:
    """A text to read: `targets[i]` is counted after reading `tokens[i]`; pad counts nothing."""

    tokens: Ids  # [n], n >= 1
    targets: Ids  # [n]
    start: States | None = None  # [1, …] each; None is the zero state
    detail_top: int | None = None  # alternatives a counted token; None for no details
    wants_continuation: bool = False
    # What reading fills in:
    position: int = 0
    logprob: float = 0.0  # nats, summed one by one in order, so that chunks do not show
    details: list[TokenDetails] = field(default_factory=list)
    continuation: Continuation | None = None

    @property
    def remaining(self) -> int:
        """Tokens still to read."""
        return len(self.tokens) - self.position


@dataclass(slots=True)
class WriteRow:
    """A choice to write, from a continuation on."""

    params: SamplingParams
    seed: int
    choice: int
    max_tokens: int
    stop: tuple[tuple[int, ...], ...] = ()  # token sequences that end the text
    detail_top: int | None = None
    # What writing fills in:
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)  # the model's own, untempered
    details: list[TokenDetails] = field(default_factory=list)
    finish_reason: Literal["stop", "length"] | None = None
    stop_tokens: int = 0  # how many tokens at the end are a stop string
    _noise: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    def uniform(self) -> float:
        """The noise of the next position."""
        block, offset = divmod(len(self.tokens), NOISE_BLOCK)
        if offset == 0:
            self._noise = noise_block(self.seed, self.choice, block)
        return float(self._noise[offset])

    def accept(self, token: int, logprob: float) -> None:
        """Append a token and see whether the text ends with it."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if token == EOS_ID:
            self.finish_reason = "stop"
            self.stop_tokens = 1
            return
        for sequence in self.stop:
            if tuple(self.tokens[-len(sequence) :]) == sequence:
                self.finish_reason = "stop"
                self.stop_tokens = len(sequence)
                return
        if len(self.tokens) == self.max_tokens:
            self.finish_reason = "length"


class ReadBatch:
    """Rows that read known tokens, a chunk of them a run, each row from its own position."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.rows: list[ReadRow] = []
        self._states: States = ()

    def add(self, row: ReadRow) -> None:
        """Let a row join before the next run."""
        start = self._session.initial_states(1) if row.start is None else row.start
        self._states = _joined(self._states, start) if self.rows else start
        self.rows.append(row)

    def remove(self, gone: Sequence[ReadRow]) -> None:
        """Let rows leave."""
        ids = {id(row) for row in gone}
        self._keep([i for i, row in enumerate(self.rows) if id(row) not in ids])

    def run(self, chunk_tokens: int) -> tuple[list[ReadRow], list[tuple[ReadRow, ModelFailure]]]:
        """Read up to `chunk_tokens` tokens a row; the rows that are done, and those that failed.

        Raises what the session raises; then no row has moved.
        """
        vocab_size = self._session.vocab_size
        longest = max(row.remaining for row in self.rows)
        fitting = max(1, _MAX_RESULT_FLOATS // (len(self.rows) * vocab_size))
        time = min(longest, chunk_tokens, fitting)
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

    def _needs_distribution(self, row: ReadRow, time: int) -> bool:
        return row.detail_top is not None or (row.wants_continuation and row.remaining <= time)

    def _take(
        self,
        index: int,
        targets: npt.NDArray[np.int64],
        picked: FloatArray,
        distributions: FloatArray | None,
    ) -> ModelFailure | None:
        """Hand a row its share of a run: `targets` [T], `picked` [T], `distributions` [T, V]."""
        row = self.rows[index]
        counted = targets != PAD_ID
        # add.accumulate adds strictly in order, so that the sum does not depend on the chunks.
        terms = np.append(row.logprob, picked[counted].astype(np.float64))
        row.logprob = float(np.add.accumulate(terms)[-1])
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
        self._states = tuple(state[indices] for state in self._states)


class WriteBatch:
    """Rows that write: sample a token a row, let finished rows leave, run the model on the rest."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.rows: list[WriteRow] = []
        self._states: States = ()
        self._logprobs: FloatArray = np.empty((0, session.vocab_size), np.float32)  # [B, V]

    def add(self, row: WriteRow, start: Continuation) -> None:
        """Let a row join before the next step."""
        self._states = _joined(self._states, start.states) if self.rows else start.states
        self._logprobs = np.concatenate([self._logprobs, start.logprobs[None]])
        self.rows.append(row)

    def remove(self, gone: Sequence[WriteRow]) -> None:
        """Let rows leave."""
        ids = {id(row) for row in gone}
        self._keep([i for i, row in enumerate(self.rows) if id(row) not in ids])

    def sample(self) -> list[WriteRow]:
        """Give every row its next token; the rows that are done have left."""
        uniform = np.array([row.uniform() for row in self.rows])
        chosen = sample(self._logprobs, [row.params for row in self.rows], uniform)  # [B]
        picked = np.take_along_axis(self._logprobs, chosen[:, None], axis=1)[:, 0]
        for i, (row, token, logprob) in enumerate(
            zip(self.rows, chosen.tolist(), picked.tolist(), strict=True)
        ):
            if row.detail_top is not None:
                one = slice(i, i + 1)
                details = TokenDetails.of(self._logprobs[one], chosen[one], row.detail_top)
                row.details.append(details)
            row.accept(token, logprob)
        done = [row for row in self.rows if row.finish_reason is not None]
        if done:
            self._keep([i for i, row in enumerate(self.rows) if row.finish_reason is None])
        return done

    def run(self) -> list[tuple[WriteRow, ModelFailure]]:
        """Run the model on every row's last token; the rows that failed have left.

        Raises what the session raises; then no row has moved.
        """
        tokens = np.array([[row.tokens[-1]] for row in self.rows], np.int64)  # [B, 1]
        lengths = np.ones(len(self.rows), np.int32)
        logprobs, self._states = self._session.read(tokens, lengths, self._states)
        self._logprobs = logprobs[:, 0]  # [B, V]
        finite: npt.NDArray[np.bool_] = np.all(np.isfinite(self._logprobs), axis=1)
        if finite.all():
            return []
        error = ModelFailure("the model gave a log-probability that is not finite")
        failed = [(row, error) for row, good in zip(self.rows, finite, strict=True) if not good]
        self._keep([i for i, good in enumerate(finite) if good])
        return failed

    def _keep(self, indices: list[int]) -> None:
        if len(indices) == len(self.rows):
            return
        self.rows = [self.rows[i] for i in indices]
        self._states = tuple(state[indices] for state in self._states)
        self._logprobs = self._logprobs[indices]


def _joined(states: States, more: States) -> States:
    return tuple(np.concatenate(pair) for pair in zip(states, more, strict=True))
