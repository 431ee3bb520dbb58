"""Characters outside a vocabulary: their positions, and the policy for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from service.bundle.arrays import BoolArray, Ids
from service.bundle.text import UNK_ID
from service.errors import InvalidRequest

UnknownPolicy: TypeAlias = Literal["unk", "error", "skip"]

# Most positions in an answer, which has the number of all unknown characters as well.
MAX_POSITIONS = 1024


@dataclass(frozen=True, slots=True)
class Unknown:
    """The characters of a text that are not in the vocabulary."""

    count: int = 0
    positions: tuple[int, ...] = ()  # in the normalized text; of the first MAX_POSITIONS

    @classmethod
    def at(cls, positions: Sequence[int]) -> "Unknown":
        """The characters at these positions."""
        if not positions:
            return _NONE
        return cls(len(positions), tuple(positions[:MAX_POSITIONS]))

    @classmethod
    def of(cls, ids: Ids) -> "Unknown":
        """The unknown ones among a text's ids."""
        unknown = ids == UNK_ID
        count = int(np.count_nonzero(unknown))
        if not count:
            return _NONE
        # The beginning usually holds enough of them, and an index takes eight bytes.
        end = len(ids) if count <= MAX_POSITIONS else _end_of_first(unknown, MAX_POSITIONS)
        return cls(count, tuple(np.flatnonzero(unknown[:end])[:MAX_POSITIONS].tolist()))


_NONE = Unknown()


def unknown_text(option: str, unknown: Unknown) -> InvalidRequest:
    """The error for a text with characters outside the vocabulary."""
    shown = ", ".join(map(str, unknown.positions[:16]))
    return InvalidRequest.of_option(
        option,
        f"{unknown.count} characters are not in the model's vocabulary, at positions "
        f"{shown}{', …' if unknown.count > 16 else ''} of the normalized text",
    )


def _end_of_first(mask: BoolArray, count: int) -> int:
    """A place before which at least `count` are true."""
    end = count
    while np.count_nonzero(mask[:end]) < count:
        end *= 2
    return end
