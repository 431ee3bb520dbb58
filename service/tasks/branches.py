"""Texts with their first blanks filled, each with its probability so far."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from service.bundle.arrays import Ids
from service.bundle.text import EOS_ID
from service.decoding.rows import Continuation, ReadRow
from service.scheduling.language_model import TextWork
from service.tasks.plans import Plan
from service.tasks.text_model import read_after


@dataclass(frozen=True, slots=True)
class Branch:
    """A text up to the end of a piece, with the blanks before it filled."""

    at: Continuation | None  # where the text goes on; None: nothing was read, or it has ended
    fills: tuple[Ids, ...] = ()
    logprob: float = 0.0  # of the fills, nats
    suffix_logprob: float = 0.0  # of the pieces after the first

    @property
    def total(self) -> float:
        """Of everything after the first piece, nats."""
        return self.logprob + self.suffix_logprob


@dataclass(frozen=True, slots=True)
class Piece:
    """What stands after a blank."""

    ids: Ids
    is_last: bool = False  # nothing goes on after it
    eos: bool = False  # it ends the document, and that is counted


@dataclass(frozen=True, slots=True)
class Read:
    """A text that was read after another one."""

    logprob: float  # nats, as /score has it with the other one as its context
    at: Continuation | None  # where it ends


def extended(branches: Sequence[Branch], fills: Sequence[Ids], piece: Piece) -> Plan[list[Branch]]:
    """Each branch with a fill and the piece after it.

    Two reads: the logprobs of both are sums from their first character on, as in /score.
    """
    filled = yield from read_on([branch.at for branch in branches], fills)
    pieces = [piece] * len(filled)
    read = yield from _read_pieces([one.at for one in filled], pieces)
    return [
        Branch(
            after.at,
            (*branch.fills, fill),
            branch.logprob + one.logprob,
            branch.suffix_logprob + after.logprob,
        )
        for branch, fill, one, after in zip(branches, fills, filled, read, strict=True)
    ]


def read_on(starts: Sequence[Continuation | None], texts: Sequence[Ids]) -> Plan[list[Read]]:
    """Each text read after a start. Without a start, its first character has no probability."""
    return _read_pieces(starts, [Piece(text) for text in texts])


def _read_pieces(
    starts: Sequence[Continuation | None], pieces: Sequence[Piece]
) -> Plan[list[Read]]:
    rows = [_row(start, piece) for start, piece in zip(starts, pieces, strict=True)]
    yield [TextWork(row) for row in rows if row is not None and row.remaining]
    return [Read(0.0, None) if row is None else Read(row.logprob, row.continuation) for row in rows]


def _row(start: Continuation | None, piece: Piece) -> ReadRow | None:
    counted = np.append(piece.ids, np.uint16(EOS_ID)) if piece.eos else piece.ids
    tokens = counted[:-1] if piece.is_last else counted
    if start is None and not len(tokens):
        return None
    return read_after(start, tokens, counted, None, goes_on=not piece.is_last)
