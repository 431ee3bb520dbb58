"""Fills of the blanks of a text, compared by their exact probability."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from service.bundle.arrays import Ids
from service.decoding.rows import Continuation
from service.tasks.branches import Branch, Piece, filled, followed
from service.tasks.plans import Plan
from service.tasks.proposing import BlankSearch, propose


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many branches of a text are kept."""

    kept: int  # from one blank to the next
    at_once: int  # while they are being read


@dataclass(frozen=True, slots=True)
class Compared:
    """What was compared for one text."""

    branches: list[Branch]
    read: int  # tokens read to compare them
    written: int = 0  # tokens written to propose them

    @property
    def order(self) -> list[int]:
        """The branches' places, likeliest first; ties keep their order."""
        return sorted(range(len(self.branches)), key=lambda i: -self.branches[i].total)

    def shares(self) -> list[float]:
        """Each branch's share of the joint probability of all of them."""
        totals = np.array([branch.total for branch in self.branches])
        shares = np.exp(totals - totals.max(initial=-np.inf))
        found: list[float] = (shares / shares.sum()).tolist()
        return found

    def mass(self) -> float:
        """The sum of the fills' probabilities, each after everything before it."""
        return float(sum(np.exp(branch.logprob) for branch in self.branches))


def compare_listed(
    start: Continuation | None, pieces: Sequence[Piece], candidates: Sequence[Ids], bounds: Bounds
) -> Plan[Compared]:
    """Every combination of candidates; if there are too many at a blank, the best ones go on."""
    branches, read = [Branch(start)], 0
    for piece in pieces:
        pairs = [(branch, fill) for branch in branches for fill in candidates]
        branches = []
        for begin in range(0, len(pairs), bounds.at_once):
            some = pairs[begin : begin + bounds.at_once]
            grown = yield from filled([branch for branch, _ in some], [fill for _, fill in some])
            branches += yield from followed(grown, piece)
            if not piece.is_last:
                branches = _likeliest(branches, bounds.kept)
        read += sum(len(fill) + len(piece.ids) for _, fill in pairs)
    return Compared(branches, read)


def compare_proposed(
    start: Continuation,
    pieces: Sequence[Piece],
    search: BlankSearch,
    others: Sequence[tuple[Ids, ...]],
) -> Plan[Compared]:
    """Compare the model's own proposals for open blanks with those of other models."""
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
    return (yield from with_others(Compared(branches, read, written), start, pieces, others))


def with_others(
    own: Compared,
    start: Continuation | None,
    pieces: Sequence[Piece],
    others: Sequence[tuple[Ids, ...]],
) -> Plan[Compared]:
    """Compare further fills (one text for each blank) with those that were compared before."""
    known = {_key(branch.fills) for branch in own.branches}
    others = [fills for fills in others if _key(fills) not in known]
    branches, read = [Branch(start)] * len(others), own.read
    for i, piece in enumerate(pieces):
        branches = yield from filled(branches, [fills[i] for fills in others])
        branches = yield from followed(branches, piece)
        read += sum(len(fills[i]) + len(piece.ids) for fills in others)
    return Compared(own.branches + branches, read, own.written)


def _likeliest(branches: list[Branch], most: int) -> list[Branch]:
    if len(branches) <= most:
        return branches
    return sorted(branches, key=lambda branch: -branch.total)[:most]


def _key(fills: Sequence[Ids]) -> tuple[bytes, ...]:
    return tuple(fill.tobytes() for fill in fills)
