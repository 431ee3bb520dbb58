"""How surprising held-out texts are: the distribution of their bits per character, by length."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from service.bundle.manifest import Record

MAX_RANKS = 256  # texts of one range of lengths that are listed
MAX_RANGES = 16
# Decimals of the listed bits per character.
DECIMALS = 4

_Bits = Annotated[float, Field(ge=0.0)]
_Count = Annotated[int, Field(gt=0, le=2**53)]  # a float holds it


class LengthRange(Record):
    """Held-out texts of similar lengths, from the least surprising to the most."""

    least_chars: _Count = Field(description="Characters of the shortest text.")
    most_chars: _Count = Field(description="Characters of the longest text.")
    texts: _Count = Field(description="How many texts there are.")
    ranks: list[_Count] = Field(
        min_length=1,
        max_length=MAX_RANKS,
        description="The ranks of the listed texts, rising: 1 is the least surprising, `texts` the "
        "most. They are densest near the most surprising.",
    )
    bits_per_char: list[_Bits] = Field(
        max_length=MAX_RANKS,
        description="Of the texts with these ranks, as `/score` counts by default: after bos, "
        "without the end.",
    )
    bits_per_char_with_eos: list[_Bits] = Field(
        max_length=MAX_RANKS,
        description="The same with the end counted (`eos`); the texts are ranked again for it.",
    )

    @model_validator(mode="after")
    def _lists_are_whole(self) -> Self:
        if self.least_chars > self.most_chars:
            raise ValueError("least_chars: at most most_chars")
        if not len(self.ranks) == len(self.bits_per_char) == len(self.bits_per_char_with_eos):
            raise ValueError("ranks, bits_per_char, bits_per_char_with_eos: of the same length")
        if (self.ranks[0], self.ranks[-1]) != (1, self.texts):
            raise ValueError("ranks: from 1 to the number of texts")
        if any(a >= b for a, b in pairwise(self.ranks)):
            raise ValueError("ranks: each is greater than the one before")
        for values in (self.bits_per_char, self.bits_per_char_with_eos):
            if any(a > b for a, b in pairwise(values)):
                raise ValueError("bits_per_char: none is less than the one before")
        return self


class Percentiles(Record):
    """How surprising held-out texts are, in fp32: the table that percentiles are read from."""

    split: Literal["valid", "test"] = Field(
        description="The held-out split, the same as in `metrics`."
    )
    texts: Literal["documents", "stretches"] = Field(
        description="What was scored as a text. `documents`: every document, which is a line. "
        "`stretches`: pieces of running text that do not overlap and begin and end with whole "
        "words."
    )
    lengths: list[LengthRange] = Field(
        min_length=1, max_length=MAX_RANGES, description="The ranges of lengths, shortest first."
    )

    @model_validator(mode="after")
    def _ranges_rise(self) -> Self:
        if not _rise(self.lengths):
            raise ValueError("lengths: each begins after the end of the one before")
        return self


def _rise(ranges: Sequence[LengthRange]) -> bool:
    return all(a.most_chars < b.least_chars for a, b in pairwise(ranges))
