"""Fills of the blanks of a text, compared by their exact probability."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self, TypeAlias

import numpy as np

from service.bundle.arrays import Float64Array, Ids
from service.decoding.rows import Continuation
from service.tasks.branches import Branch, Piece, filled, followed
from service.tasks.plans import Plan
from service.tasks.proposing import BlankSearch, propose

Fills: TypeAlias = tuple[Ids, ...]  # one text a blank


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many branches of a text are kept."""

    kept: int  # from one blank to the next
    at_once: int  # while they are being read
    answered: int  # in the end


@dataclass(frozen=True, slots=True)
class Compared:
    """What was compared for one text: the likeliest branches, and two numbers of each of all."""

    branches: list[Branch]  # likeliest first; ties keep their order
    totals: Float64Array  # of all branches, nats
    logprobs: Float64Array  # of their fills alone
    read: int  # tokens, for comparing them
    written: int = 0  # tokens, for proposing them

    @classmethod
    def of(cls, branches: list[Branch], most: int, *, read: int = 0, written: int = 0) -> Self:
        """From all branches, of which the `most` likeliest are kept."""
        totals = np.array([branch.total for branch in branches])
        logprobs = np.array([branch.logprob for branch in branches])
        return cls(_likeliest(branches, most), totals, logprobs, read, written)

    def with_more(self, more: Self, most: int) -> Self:
        """Both together; of equals, the own ones come first."""
        return replace(
            self,
            branches=_likeliest([*self.branches, *more.branches], most),
            totals=np.concatenate([self.totals, more.totals]),
            logprobs=np.concatenate([self.logprobs, more.logprobs]),
            read=self.read + more.read,
            written=self.written + more.written,
        )

    def shares(self) -> list[float]:
        """The kept branches' shares of the joint probability of all."""
        best = self.totals.max(initial=-np.inf)
        # The sum is exact: it does not depend on how many were read at once.
        total = math.fsum(np.exp(self.totals - best))
        return [math.exp(branch.total - best) / total for branch in self.branches]

    def mass(self) -> float:
        """The sum of the fills' probabilities, each after everything before it."""
        return math.fsum(np.exp(self.logprobs))


def compare_listed(
    start: Continuation | None,
    pieces: Sequence[Piece],
    candidates: Sequence[Ids],
    bounds: Bounds,
    others: Sequence[Fills] = (),
) -> Plan[Compared]:
    """Every combination of candidates, and other texts; of too many at a blank, the best go on."""
    most = bounds.answered
    elsewhere = yield from _compare_given(start, pieces, others, most)
    known = set(map(_key, others))
    found = Compared.of([], most)
    branches, read = [Branch(start)], 0
    for piece in pieces:
        pairs = [(branch, fill) for branch in branches for fill in candidates]
        branches = []
        for begin in range(0, len(pairs), bounds.at_once):
            some = pairs[begin : begin + bounds.at_once]
            grown = yield from filled([branch for branch, _ in some], [fill for _, fill in some])
            grown = yield from followed(grown, piece)
            if piece.is_last:
                new = [branch for branch in grown if _key(branch.fills) not in known]
                found = found.with_more(Compared.of(new, most), most)
            else:
                branches = _likeliest(branches + grown, bounds.kept)
        read += sum(len(fill) + len(piece.ids) for _, fill in pairs)
    return replace(found.with_more(elsewhere, most), read=elsewhere.read + read)


def compare_proposed(
    start: Continuation,
    pieces: Sequence[Piece],
    search: BlankSearch,
    others: Sequence[Fills],
    most: int,
) -> Plan[Compared]:
    """What the model itself proposes for open blanks, and the proposals of others."""
    branches, read, written = [Branch(start)], 0, 0
    for i, piece in enumerate(pieces):
        proposals = yield from propose(search, branches, i, piece)
        branches = [
            replace(
                branches[x.branch],
                at=x.at,
                fills=(*branches[x.branch].fills, x.ids),
                logprob=branches[x.branch].logprob + x.logprob,
            )
            for x in proposals.found
        ]
        branches = yield from followed(branches, piece)
        written += proposals.written
        read += proposals.looked + len(branches) * len(piece.ids)
        if not piece.is_last:
            branches = _likeliest(branches, search.effort.compared)
    known = {_key(branch.fills) for branch in branches}
    unknown = [fills for fills in others if _key(fills) not in known]
    elsewhere = yield from _compare_given(start, pieces, unknown, most)
    return Compared.of(branches, most, read=read, written=written).with_more(elsewhere, most)


def _compare_given(
    start: Continuation | None, pieces: Sequence[Piece], given: Sequence[Fills], most: int
) -> Plan[Compared]:
    """Given texts, one for each blank."""
    branches, read = [Branch(start)] * len(given), 0
    for i, piece in enumerate(pieces):
        branches = yield from filled(branches, [fills[i] for fills in given])
        branches = yield from followed(branches, piece)
        read += sum(len(fills[i]) + len(piece.ids) for fills in given)
    return Compared.of(branches, most, read=read)


def _likeliest(branches: list[Branch], most: int) -> list[Branch]:
    return sorted(branches, key=lambda branch: -branch.total)[:most]


def _key(fills: Fills) -> tuple[bytes, ...]:
    return tuple(fill.tobytes() for fill in fills)
