"""How an encoder-decoder reads a text with blanks, and how it writes what belongs there.

A text with n blanks has n + 1 pieces. The source is the text as a ring that is cut at its first
blank: `blank piece blank piece … seam piece`, with the first piece at the end. So the last state of
each direction of the encoder is next to the first blank. The target has the texts of the blanks
with marks between them, like the sentinels of Raffel et al. 2020 (section 3.1.4).
"""

from collections.abc import Sequence
from typing import Annotated, Self, TypeAlias

from pydantic import Field, model_validator

from service.bundle.manifest import Record
from service.bundle.text import SPECIAL_TOKENS, UNK_ID

# From the private use area, like the printed forms of special tokens.
BLANK, SEAM, EDGE = "\ue004", "\ue005", "\ue006"
MARKS = (BLANK, SEAM, EDGE)

Mark: TypeAlias = Annotated[str, Field(min_length=1, max_length=1)]


class Infill(Record):
    """How texts with blanks become sources, and how targets hold the texts of the blanks."""

    blank: Mark = Field(
        description="Stands for a blank in a source, and between the texts of two blanks in a "
        "target."
    )
    seam: Mark = Field(
        description="Stands between the end and the beginning of the text, which is read from its "
        "first blank on."
    )
    edge: Mark = Field(description="Stands where the document begins or ends.")
    context: int = Field(
        ge=1,
        description="Most characters that are read before the first blank, after the last one, and "
        "between two; an edge counts as one.",
    )
    max_blanks: int = Field(ge=1, description="Most blanks in a source.")
    max_chars: int = Field(ge=1, description="Longest text of a blank in training.")

    @model_validator(mode="after")
    def _marks_differ(self) -> Self:
        if len(set(self.marks)) < len(MARKS):
            raise ValueError("blank, seam, edge: they must be different characters")
        return self

    def unmarked(self, text: str) -> str:
        """The text with an unknown character for each mark in it."""
        return text.translate({ord(mark): SPECIAL_TOKENS[UNK_ID] for mark in self.marks})

    @property
    def marks(self) -> tuple[str, str, str]:
        """The characters that no text contains."""
        return self.blank, self.seam, self.edge

    def source(self, pieces: Sequence[str], *, begins: bool, ends: bool) -> str:
        """The source for normalized pieces, cut to the context on both sides.

        `begins`, `ends`: whether the first piece begins the document, and the last one ends it.
        The pieces between two blanks must be within the context.
        """
        first, *rest = map(self.unmarked, pieces)
        first = (self.edge * begins + first)[-self.context :]
        rest[-1] = (rest[-1] + self.edge * ends)[: self.context]
        return self.blank + self.blank.join(rest) + self.seam + first

    def target(self, texts: Sequence[str]) -> str:
        """The target for the normalized texts of the blanks."""
        return self.blank.join(map(self.unmarked, texts))

    def texts(self, target: str) -> tuple[str, ...]:
        """The blanks' texts in a target."""
        return tuple(target.split(self.blank))

    def readable(self, text: str, blank: str = "___") -> str:
        """A source or a target for people."""
        after, seam, before = text.partition(self.seam)
        if not seam:
            return text.replace(self.blank, " … ")
        return (before + after).replace(self.blank, blank).replace(self.edge, "")


def infill_of(*, context: int, max_blanks: int, max_chars: int) -> Infill:
    """With the marks that training uses."""
    return Infill(
        blank=BLANK,
        seam=SEAM,
        edge=EDGE,
        context=context,
        max_blanks=max_blanks,
        max_chars=max_chars,
    )
