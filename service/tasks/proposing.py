"""Texts for open blanks, proposed by the forward model.

B rows, V vocabulary. A beam over characters from left to right keeps the likeliest texts of every
length and draws some others (Gumbel top-k: Kool et al., ICML 2019), since a text that fits what
follows the blank need not be likely before that is seen. The first characters after the blank then
decide which of these texts are compared on everything that follows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from service.bundle.arrays import Float64Array, Ids, Int64Array
from service.decoding.rows import Continuation
from service.tasks.branches import Branch, Piece, read_on
from service.tasks.open_blanks import OpenBlank
from service.tasks.plans import Plan

DEFAULT_NUM_PROPOSALS = 64
# How many characters after the blank decide.
WINDOW = 8
# Floats of log-probabilities that a text may hold.
_MAX_FLOATS = 4 * 2**20
_ONE_IN = 4  # of a beam's rows is drawn


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """How many texts are tried, to find so many to compare (docs/infill.md has measurements)."""

    compared: int
    width: int  # rows of the beam
    last_width: int  # and those of its last character
    looked: int  # texts whose next WINDOW characters are read

    @classmethod
    def of(cls, compared: int, vocab_size: int) -> Self:
        """For so many texts to compare."""
        most = most_held(vocab_size)
        return cls(
            compared=compared,
            width=min(4 * compared, 256, most),
            last_width=min(16 * compared, 1024, most),
            looked=max(compared, min(8 * compared, 2048, most)),
        )

    def written(self, longest: int) -> int:
        """Most tokens that the beam of a blank reads."""
        return (longest - 1) * self.width + self.last_width


def most_held(vocab_size: int) -> int:
    """How many continuations a text may hold: each has the log-probability of every token."""
    return max(64, _MAX_FLOATS // vocab_size)


class Noise:
    """Uniform numbers from a seed (Philox: numpy promises that its raw stream never changes)."""

    def __init__(self, seed: int, blank: int) -> None:
        self._bits = np.random.Philox(key=np.array([seed, blank], np.uint64))

    def gumbel(self, count: int) -> Float64Array:
        """Standard Gumbel noise, [count]."""
        raw = self._bits.random_raw(count) >> np.uint64(11)
        uniform = (raw.astype(np.float64) + 0.5) * 2.0**-53
        noise: Float64Array = -np.log(-np.log(uniform))
        return noise


@dataclass(frozen=True, slots=True)
class BlankSearch:
    """What a request looks for in every blank of every text."""

    blank: OpenBlank
    effort: Effort
    seed: int


@dataclass(frozen=True, slots=True, eq=False)
class Proposed:
    """A text for a blank."""

    branch: int  # index of the branch that it follows
    ids: Ids
    logprob: float  # nats
    at: Continuation  # after it
    score: float  # of its branch and itself, with a look at what follows; nats


@dataclass(slots=True)
class _Rows:
    """The rows of a beam, all of one length."""

    branches: Int64Array  # [B] indices
    bases: Float64Array  # [B] total of its branch
    ids: Ids  # [B, length]
    logprobs: Float64Array  # [B] summed one by one in order, as in a read
    states: Int64Array  # [B] of the automaton
    at: list[Continuation]

    @classmethod
    def before(cls, branches: Sequence[Branch]) -> Self:
        """One row for each branch, without a character."""
        count = len(branches)
        return cls(
            np.arange(count),
            np.array([branch.total for branch in branches]),
            np.zeros((count, 0), np.uint16),
            np.zeros(count),
            np.zeros(count, np.int64),
            [_known(branch.at) for branch in branches],
        )


@dataclass(frozen=True, slots=True)
class Proposals:
    """Texts for a blank, likeliest first, and how many tokens were read to find them."""

    found: list[Proposed]
    written: int  # by the beam
    looked: int  # after its texts


def propose(
    search: BlankSearch, branches: Sequence[Branch], place: int, piece: Piece
) -> Plan[Proposals]:
    """Texts for the blank at index `place`, between each branch and the piece that follows."""
    blank, effort, noise = search.blank, search.effort, Noise(search.seed, place)
    rows, written = _Rows.before(branches), 0
    found: list[Proposed] = []
    for length in range(1, blank.longest + 1):
        width = effort.width if length < blank.longest else effort.last_width
        rows = yield from _next_rows(rows, blank, length, width, noise)
        written += len(rows.at)
        found = _best(found + _ended(rows, blank, length, piece), effort.looked)
        rows = _taken(rows, np.flatnonzero(blank.goes_on[length][rows.states]))
        if not rows.at:
            break
    if len(found) <= effort.compared:
        return Proposals(found, written, 0)
    window = piece.counted[:WINDOW]
    reads = yield from read_on([x.at for x in found], [window] * len(found), is_last=True)
    pairs = zip(found, reads, strict=True)
    scored = [replace(x, score=branches[x.branch].total + x.logprob + y.logprob) for x, y in pairs]
    return Proposals(_best(scored, effort.compared), written, len(found) * len(window))


def _next_rows(rows: _Rows, blank: OpenBlank, length: int, width: int, noise: Noise) -> Plan[_Rows]:
    """The rows with one more character, which makes `length` characters; at most `width` rows."""
    logprobs = np.stack([at.logprobs for at in rows.at]).astype(np.float64)  # [B, V]
    logprobs = rows.logprobs[:, None] + logprobs
    states, useful = blank.after(rows.states, length)
    origins, tokens = np.nonzero(useful)
    ranked = rows.bases[origins] + logprobs[origins, tokens]
    kept = _chosen(ranked, width, noise)
    origins, tokens = origins[kept], tokens[kept].astype(np.uint16)
    reads = yield from read_on([rows.at[i] for i in origins], list(tokens[:, None]))
    return _Rows(
        rows.branches[origins],
        rows.bases[origins],
        np.concatenate([rows.ids[origins], tokens[:, None]], axis=1),
        logprobs[origins, tokens],
        states[origins, tokens],
        [_known(read.at) for read in reads],
    )


def _chosen(ranked: Float64Array, width: int, noise: Noise) -> Int64Array:
    """The indices of the best ones, and of some others drawn by their probability."""
    order = np.argsort(-ranked, kind="stable")
    if len(order) <= width:
        return order
    drawn = width // _ONE_IN
    best, rest = order[: width - drawn], order[width - drawn :]
    perturbed = ranked[rest] + noise.gumbel(len(rest))
    return np.concatenate([best, rest[np.argsort(-perturbed, kind="stable")[:drawn]]])


def _ended(rows: _Rows, blank: OpenBlank, length: int, piece: Piece) -> list[Proposed]:
    """The rows that are whole texts, scored with the next character."""
    follows = piece.counted[:1].tolist()
    places = np.flatnonzero(blank.ends[length][rows.states]).tolist()
    return [
        Proposed(
            branch=int(rows.branches[i]),
            ids=rows.ids[i],
            logprob=float(rows.logprobs[i]),
            at=rows.at[i],
            score=float(rows.bases[i] + rows.logprobs[i])
            + sum(float(rows.at[i].logprobs[token]) for token in follows),
        )
        for i in places
    ]


def _taken(rows: _Rows, places: Int64Array) -> _Rows:
    return _Rows(
        rows.branches[places],
        rows.bases[places],
        rows.ids[places],
        rows.logprobs[places],
        rows.states[places],
        [rows.at[i] for i in places],
    )


def _best(found: list[Proposed], count: int) -> list[Proposed]:
    return sorted(found, key=lambda x: -x.score)[:count]


def _known(at: Continuation | None) -> Continuation:
    if at is None:
        raise RuntimeError("nothing was read before the blank")
    return at
