"""Texts with their first blanks filled, each with its probability so far."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from service.bundle.arrays import Ids
from service.bundle.text import EOS_ID
from service.decoding.rows import Continuation, ReadRow
from service.scheduling.language_model import TextWork
from service.tasks.plans import Plan
from service.tasks.text_model import read_after


@dataclass(frozen=True, slots=True)
class Branch:
    """A text up to some place, with the blanks before it filled."""

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

    @property
    def counted(self) -> Ids:
        """Its tokens, eos included where it counts."""
        return np.append(self.ids, np.uint16(EOS_ID)) if self.eos else self.ids


@dataclass(frozen=True, slots=True)
class Read:
    """A text that was read after another one."""

    logprob: float  # nats, as /score has it with the other text as its context
    at: Continuation | None  # where it ends


def filled(branches: Sequence[Branch], fills: Sequence[Ids]) -> Plan[list[Branch]]:
    """Each branch with a fill. If nothing stands before it, its first character is not counted."""
    reads = yield from read_on([branch.at for branch in branches], fills)
    return [
        replace(
            branch,
            at=read.at,
            fills=(*branch.fills, fill),
            logprob=branch.logprob + read.logprob,
        )
        for branch, fill, read in zip(branches, fills, reads, strict=True)
    ]


def followed(branches: Sequence[Branch], piece: Piece) -> Plan[list[Branch]]:
    """Each branch with the piece after its last fill.

    The piece is read separately: as in /score, the logprob of a fill or a piece is a sum that
    starts with its first character.
    """
    counted = piece.counted
    reads = yield from read_on(
        [branch.at for branch in branches], [counted] * len(branches), is_last=piece.is_last
    )
    return [
        replace(branch, at=read.at, suffix_logprob=branch.suffix_logprob + read.logprob)
        for branch, read in zip(branches, reads, strict=True)
    ]


def read_on(
    starts: Sequence[Continuation | None], texts: Sequence[Ids], *, is_last: bool = False
) -> Plan[list[Read]]:
    """Read each text after a start. The last token of a last piece is predicted, but not read."""
    pairs = zip(starts, texts, strict=True)
    rows = [_row(start, text, is_last=is_last) for start, text in pairs]
    yield [TextWork(row) for row in rows if row is not None and row.remaining]
    return [Read(0.0, None) if row is None else Read(row.logprob, row.continuation) for row in rows]


def _row(start: Continuation | None, text: Ids, *, is_last: bool) -> ReadRow | None:
    tokens = text[:-1] if is_last else text
    if start is None and not len(tokens):
        return None
    return read_after(start, tokens, text, None, goes_on=not is_last)
