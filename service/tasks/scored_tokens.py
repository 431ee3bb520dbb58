"""Tokens with what the model thought of them."""

import math
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import overload

import numpy as np

from service.bundle.arrays import Ids
from service.decoding.rows import TokenDetails

_BLOCK = 256  # tokens that become objects at a time


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that could have stood there."""

    token: str
    logprob: float


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token and what the model thought of it. `None`: nothing before it to predict it from."""

    token: str
    logprob: float | None
    entropy_bits: float | None
    rank: int | None
    top: tuple[Alternative, ...]


class ScoredTokens(Sequence[ScoredToken]):
    """Tokens with what the model thought of them, each built when it is accessed.

    A token takes 2 kB as an object, but only some tens of bytes in these columns.
    """

    def __init__(self, names: Sequence[str], ids: Ids, parts: Sequence[TokenDetails]) -> None:
        """`names` are the printed tokens, `ids` [T] the described tokens."""
        self._names = names
        self._ids = ids
        self._details = TokenDetails.joined(parts) if len(ids) else None
        self._first: tuple[ScoredToken, ...] = ()

    def after(self, first: Sequence[ScoredToken]) -> "ScoredTokens":
        """These tokens, with others before them."""
        whole = copy(self)
        whole._first = (*first, *self._first)  # noqa: SLF001 (its own)
        return whole

    def __len__(self) -> int:
        return len(self._first) + len(self._ids)

    def __iter__(self) -> Iterator[ScoredToken]:
        yield from self._first
        for start in range(0, len(self._ids), _BLOCK):
            yield from self._block(slice(start, start + _BLOCK))

    @overload
    def __getitem__(self, index: int) -> ScoredToken: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[ScoredToken, ...]: ...

    def __getitem__(self, index: int | slice) -> ScoredToken | tuple[ScoredToken, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        place = range(len(self))[index] - len(self._first)
        if place < 0:
            return self._first[place]
        return next(self._block(slice(place, place + 1)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]

    def _block(self, places: slice) -> Iterator[ScoredToken]:
        details, names = self._details, self._names
        if details is None:
            return
        columns = zip(
            self._ids[places].tolist(),
            details.logprob[places].tolist(),
            (details.entropy[places] / math.log(2)).tolist(),
            details.rank[places].tolist(),
            details.top_ids[places].tolist(),
            details.top_logprobs[places].tolist(),
            strict=True,
        )
        for token, logprob, entropy_bits, rank, top_ids, top_logprobs in columns:
            pairs = zip(top_ids, top_logprobs, strict=True)
            top = tuple(Alternative(names[i], x) for i, x in pairs)
            yield ScoredToken(names[token], logprob, entropy_bits, rank, top)


def scored_tokens(
    names: Sequence[str], ids: Sequence[int] | Ids, parts: Sequence[TokenDetails]
) -> ScoredTokens:
    """Tokens with what the model thought of them; `names` are the printed tokens."""
    return ScoredTokens(names, np.asarray(ids, np.uint16), parts)
