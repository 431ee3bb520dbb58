"""The search for the targets of one source: its options, and the hypotheses found so far.

K rows of a source (its width), M memory positions, T tokens.
"""

import math
from bisect import insort_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

import numpy as np

from service.bundle.arrays import Float32Array, Float64Array, Ids, Int64Array
from service.decoding.constraints import Constraint
from service.decoding.rows import TokenDetails
from service.decoding.sampling import SamplingParams

FinishReason: TypeAlias = Literal["stop", "length", "repetition"]


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A target that was found or given."""

    tokens: tuple[int, ...]  # with eos at the end if it ended
    token_logprobs: tuple[float, ...]  # nats
    logprob: float  # nats, summed one by one in order
    finish_reason: FinishReason
    row: int  # which of its source's rows wrote it: for a sample, the choice
    attention: Float32Array | None  # [T, M] where it was asked for

    def score(self, length_penalty: float) -> float:
        """sum logprob / length ** p, eos counted."""
        return self.logprob / math.pow(max(1, len(self.tokens)), length_penalty)


class SearchListener(Protocol):
    """Receives the tokens of a search while it runs, in the worker's thread."""

    def wrote(self, place: int, tokens: Ids, logprobs: Float32Array) -> None:
        """The target at this place of the answer goes on with these tokens, whatever follows.

        A sample's place is its row; of beams only the best is reported, at place 0.
        """

    def ended(self) -> None:
        """Called at the end; the search has its hypotheses."""


@dataclass(slots=True, eq=False)
class Search:
    """The search for one source: its rows are samples if `params` is given, else beams."""

    source: Ids  # eos the last
    width: int
    max_tokens: int  # of a target, eos counted
    forced: tuple[int, ...] = ()  # how every target begins
    given: bool = False  # `forced` is the whole target: there is nothing to search for
    params: SamplingParams | None = None
    seed: int = 0
    num_hypotheses: int = 1
    length_penalty: float = 1.0
    writes_unknown: bool = False
    constraint: Constraint | None = None  # what a target may be; every target then matches it
    held: int = 0  # numbers held beside the tokens, such as those of a constraint
    detail_top: int | None = None  # alternatives a given token; None for no details
    wants_attention: bool = False
    listener: SearchListener | None = None
    # Filled in by the search:
    hypotheses: list[Hypothesis] = field(default_factory=list)
    details: list[TokenDetails] = field(default_factory=list)  # of a given target
    position: int = 0  # tokens that every row has
    trace: list[tuple[Int64Array, Float32Array]] = field(default_factory=list)  # origins, attention
    noise: Float64Array | None = None  # [K, NOISE_BLOCK] of the block it is in
    reported: int = 0  # tokens of the best target that the listener knows
    began: float | None = None  # time.monotonic() when its source had been read
    # Of beams: nats of the likeliest other candidate, ended or not, in the step after which nothing
    # could be better than the best hypothesis (-inf if there was none). So it does not depend on
    # how many hypotheses are asked for.
    rival: float | None = None

    @property
    def rows(self) -> int:
        """The number of its rows."""
        return self.width

    @property
    def remaining(self) -> int:
        """Tokens to read."""
        return len(self.source)

    @property
    def queued_tokens(self) -> int:
        """Tokens that it counts towards the queue's limit."""
        return len(self.source) + self.width * self.max_tokens + self.held

    @property
    def first_token_at(self) -> float | None:
        """When its search began; None for a given target."""
        return None if self.given else self.began

    @property
    def written_tokens(self) -> int:
        """The number of steps searched."""
        return self.position

    def best(self) -> list[Hypothesis]:
        """The samples in order, or the best hypotheses: first those that ended, then the others."""
        if self.params is None or len(self.hypotheses) == 1:
            return self.hypotheses
        return sorted(self.hypotheses, key=lambda x: x.row)

    def keep(self, hypothesis: Hypothesis) -> None:
        """Keep a hypothesis; with beams only the best ones, since one may end at every step."""
        if self.params is not None:
            self.hypotheses.append(hypothesis)
            return
        insort_right(self.hypotheses, hypothesis, key=self._rank)
        del self.hypotheses[self.num_hypotheses :]

    def _rank(self, hypothesis: Hypothesis) -> tuple[bool, float]:
        return hypothesis.finish_reason != "stop", -hypothesis.score(self.length_penalty)

    @property
    def floor(self) -> float:
        """What a beam must score to be kept: -inf until as many have ended as are asked for."""
        if len(self.hypotheses) < self.num_hypotheses:
            return -math.inf
        last = self.hypotheses[-1]
        return last.score(self.length_penalty) if last.finish_reason == "stop" else -math.inf

    @property
    def lead(self) -> float:
        """What a beam must score to be the best hypothesis; -inf until one has ended."""
        if not self.hypotheses or self.hypotheses[0].finish_reason != "stop":
            return -math.inf
        return self.hypotheses[0].score(self.length_penalty)

    def settle(self, likeliest: Sequence[float]) -> None:
        """Note the rival of the best hypothesis, which nothing can beat any more.

        `likeliest` are the nats of the two likeliest candidates that ended, and of the likeliest
        that goes on.
        """
        first, second, live = likeliest
        if not self.hypotheses:
            return
        best = self.hypotheses[0].logprob
        self.rival = max(second if first == best else first, live)

    def attention_of(self, row: int, latest: Float32Array | None = None) -> Float32Array | None:
        """Attention [T, M] behind the tokens of a row; None where none was remembered.

        `latest` [M] is that of a token which the row has not taken yet.
        """
        weights = [] if latest is None else [latest]
        weights += self._weights_back_from(row)
        return np.stack(weights[::-1]) if weights else None

    def _weights_back_from(self, row: int) -> Iterator[Float32Array]:
        for origins, attention in reversed(self.trace):
            row = int(origins[row])
            yield attention[row]
