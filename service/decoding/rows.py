"""Rows: one text being read, or one choice being written.

T time, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from service.bundle.arrays import Float32Array, Float64Array, Ids, Int64Array
from service.bundle.text import PAD_ID
from service.decoding.constraints import Constraint
from service.decoding.sampling import SamplingParams
from service.runtime.language_model import States


@dataclass(frozen=True, slots=True)
class Continuation:
    """The point from which a text continues: the states, and log p [V] of the next token."""

    states: States  # [1, …] each
    logprobs: Float32Array  # [V]


@dataclass(frozen=True, slots=True)
class TokenDetails:
    """Details of each counted token; T is the number of tokens."""

    logprob: Float32Array  # [T] nats
    entropy: Float64Array  # [T] nats
    rank: Int64Array  # [T] 1 is the likeliest
    top_ids: Int64Array  # [T, K]
    top_logprobs: Float32Array  # [T, K] nats

    @classmethod
    def of(cls, logprobs: Float32Array, targets: Int64Array, top: int) -> "TokenDetails":
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

    @property
    def columns(self) -> tuple[npt.NDArray[Any], ...]:
        """The arrays, in the order of the fields."""
        return self.logprob, self.entropy, self.rank, self.top_ids, self.top_logprobs

    def of_one(self, index: int, top: int) -> "TokenDetails":
        """The details of one token, with `top` alternatives."""
        one = slice(index, index + 1)
        return TokenDetails(
            logprob=self.logprob[one],
            entropy=self.entropy[one],
            rank=self.rank[one],
            top_ids=self.top_ids[one, :top],
            top_logprobs=self.top_logprobs[one, :top],
        )

    @classmethod
    def joined(cls, parts: Sequence["TokenDetails"]) -> "TokenDetails":
        """Several parts joined, one after another."""
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

    tokens: Ids  # [n], n >= 1 without `after`
    targets: Ids  # [n]
    start: States | None = None  # [1, …] each; None is the zero state
    detail_top: int | None = None  # alternatives a counted token; None for no details
    wants_continuation: bool = False
    after: Continuation | None = None  # of a text that was read before; then n may be 0
    first: int = PAD_ID  # what is counted after `after`; pad counts nothing
    # Called with the tokens and the continuation once it has been read, in the worker's thread.
    remember: Callable[[Ids, Continuation], None] | None = None
    # Filled in by reading:
    position: int = 0
    logprob: float = 0.0  # nats, summed one by one in order, so that chunks do not show
    details: list[TokenDetails] = field(default_factory=list)
    continuation: Continuation | None = None
    uncounted: int = field(init=False)  # tokens from the start after which nothing is counted

    def __post_init__(self) -> None:
        # By bytes (pad is 0), since rows are made in the event loop: numpy's argmax gives up
        # Python's lock, and the loop would wait until an engine's thread gives it back.
        written = self.targets.tobytes()
        pads = len(written) - len(written.lstrip(b"\0"))
        self.uncounted = pads // self.targets.itemsize
        if self.after is not None:
            self._begin_after(self.after)

    def _begin_after(self, before: Continuation) -> None:
        self.start = before.states
        if not len(self.tokens):
            self.continuation = before
        if self.first == PAD_ID:
            return
        self.logprob = float(before.logprobs[self.first])
        if self.detail_top is not None:
            target = np.array([self.first], np.int64)
            details = TokenDetails.of(before.logprobs[None], target, self.detail_top)
            self.details.append(details)

    def resume(self, length: int, states: States) -> None:
        """Begin after the first `length` tokens, which have been read elsewhere."""
        self.position, self.start = length, states

    @property
    def remaining(self) -> int:
        """Tokens still to read."""
        return len(self.tokens) - self.position


class Listener(Protocol):
    """Hears of a choice while it is written, in the worker's thread."""

    def wrote(self, token: int, details: TokenDetails) -> None:
        """Called for each token; `details` has one entry."""

    def ended(self) -> None:
        """No token follows; the row says why."""


@dataclass(slots=True)
class WriteRow:
    """A choice to write from a continuation."""

    params: SamplingParams
    seed: int
    choice: int
    max_tokens: int
    stop: tuple[tuple[int, ...], ...] = ()  # token sequences that end the text
    detail_top: int | None = None
    constraint: Constraint | None = None  # what its text may be
    listener: Listener | None = None  # gets the details, which the row then does not keep
    drawn: int = 0  # tokens of this choice drawn before a resume: where its noise continues
    wants_continuation: bool = False
    # Filled in by writing:
    began: float | None = None  # time.monotonic() at its first token
    tokens: list[int] = field(default_factory=list)
    details: list[TokenDetails] = field(default_factory=list)
    finish_reason: Literal["stop", "length"] | None = None
    stop_tokens: int = 0  # number of tokens at the end that are a stop string
    tail: tuple[int, ...] = ()  # its last tokens, if there are stop strings
    prompt: ReadRow | None = (
        None  # the prompt that it still reads, one token a step, before it writes
    )
    closing: ReadRow | None = None  # the read of its last token, if it wants a continuation
    continuation: Continuation | None = None  # after its last token; none follows eos
    # Asked whenever the rows of a batch change, and so looked up once:
    is_plain: bool = field(init=False)  # whether its sampling is
    is_watched: bool = field(init=False)  # whether its tokens are looked at one by one

    def __post_init__(self) -> None:
        self.is_plain = self.params.is_plain
        is_detailed = self.detail_top is not None
        self.is_watched = bool(self.stop) or is_detailed or self.constraint is not None

    def tell(self, listener: Listener) -> None:
        """Let a listener have the tokens, with details; before the row is written."""
        self.listener = listener
        self.detail_top = self.detail_top or 0
        self.is_watched = True
