"""Which texts an open blank may have, while its characters are chosen from left to right.

S states of the automaton, V vocabulary, L most characters.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from service.bundle.arrays import BoolArray, Ids, Int32Array, Int64Array
from service.decoding.constraints import Constraint, Pattern
from service.errors import InvalidRequest
from service.tasks.infill_values import InfillOptions

# The rule of a blank without one.
ANYTHING = Pattern("(?s).*")


@dataclass(frozen=True, slots=True, eq=False)
class OpenBlank:
    """The automaton of the texts that a blank may have, and their possible lengths."""

    constraint: Constraint
    ends: BoolArray  # [L + 1, S + 1] whether a text of so many characters may end in a state
    goes_on: BoolArray  # [L + 1, S + 1] whether more characters can lead to such an end
    num_lengths: int  # how many lengths its texts may have

    @classmethod
    def of(cls, constraint: Constraint, shortest: int, longest: int) -> Self:
        """Texts of `shortest` to `longest` characters that match."""
        following, states = constraint.following, len(constraint.following)
        ends = np.zeros((longest + 1, states), np.bool_)
        ends[shortest:] = constraint.distance == 0
        goes_on = np.zeros_like(ends)
        for length in range(longest - 1, -1, -1):
            useful = ends[length + 1] | goes_on[length + 1]
            goes_on[length] = useful[following].any(axis=1)
        return cls(constraint, ends, goes_on, _num_lengths(following, ends))

    @property
    def longest(self) -> int:
        """Most characters."""
        return len(self.ends) - 1

    def characters(self) -> list[Ids]:
        """The texts of one character."""
        tokens = np.arange(len(self.constraint.class_of), dtype=np.uint16)[:, None]
        return [ids for ids in tokens if self.fits(ids)]

    def after(self, states: Int64Array, length: int) -> tuple[Int64Array, BoolArray]:
        """The states after each token, and whether a text of that length leads on, [B, V] both."""
        following = self.constraint.following[states][:, self.constraint.class_of]
        after = following.astype(np.int64)
        return after, (self.ends[length] | self.goes_on[length])[after]

    def fits(self, ids: Ids) -> bool:
        """Whether a text may fill the blank."""
        state = 0
        for token in ids.tolist():
            state = self.constraint.after_one(state, token)
        return len(ids) <= self.longest and bool(self.ends[len(ids), state])


def open_blank(options: InfillOptions, constraint: Constraint) -> OpenBlank:
    """The open blank that checked options ask for. Raises InvalidRequest."""
    longest = options.max_tokens or 1
    blank = OpenBlank.of(constraint, options.length or 1, longest)
    if not blank.num_lengths:
        named = "max_tokens" if options.length is None else "length"
        detail = f"no text of {options.length or 1} to {longest} characters matches"
        raise InvalidRequest.of_option(named, detail)
    return blank


def _num_lengths(following: Int32Array, ends: BoolArray) -> int:
    """How many lengths the texts may have."""
    reached = np.zeros(ends.shape[1], np.bool_)
    reached[0] = True
    count = 0
    for length in range(1, len(ends)):
        after = np.zeros_like(reached)
        after[following[reached]] = True
        reached = after
        count += bool((reached & ends[length]).any())
    return count
