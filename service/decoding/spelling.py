"""How the tokens of a vocabulary spell the texts that rules are about. V vocabulary."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from service.bundle.marks import MAX_MARKS
from service.bundle.text import SPECIAL_TOKENS
from service.bundle.tokenization import Tokenization, Tokenizer


@dataclass(frozen=True)
class Spelling:
    """The units that each token spells, [V - 4]: special tokens spell nothing.

    A unit is a character, or a whole symbol where a rule is about symbols.
    """

    first: tuple[tuple[str, ...], ...]  # where it begins a text
    later: tuple[tuple[str, ...], ...]  # after another token

    @classmethod
    def of_units(cls, tokens: Sequence[str]) -> "Spelling":
        """Each token of a vocabulary is one unit."""
        units = tuple((token,) for token in tokens[len(SPECIAL_TOKENS) :])
        return cls(units, units)

    @classmethod
    def of_characters(cls, tokenizer: Tokenizer) -> "Spelling":
        """The characters that each token adds to a text."""
        tokens = tokenizer.tokens[len(SPECIAL_TOKENS) :]
        join = tokenizer.join
        # A text begins with the texts of its first tokens, in every kind of vocabulary.
        before = list(tokens[:1])
        later = (join([*before, token])[len(join(before)) :] for token in tokens)
        return cls(tuple(tuple(join([token])) for token in tokens), tuple(map(tuple, later)))

    @cached_property
    def alphabet(self) -> tuple[str, ...]:
        """All units, each once, in the order of the tokens."""
        return tuple(dict.fromkeys(x for side in (self.first, self.later) for y in side for x in y))


@dataclass(frozen=True, slots=True)
class Writing:
    """A vocabulary as rules see it."""

    characters: Spelling  # what patterns are about
    units: Spelling  # what all other rules are about: the same, or symbols
    unit: str  # "character" or "symbol"

    @classmethod
    def of_characters(cls, tokens: Sequence[str]) -> "Writing":
        """Of a vocabulary of characters."""
        spelling = Spelling.of_units(tokens)
        return cls(spelling, spelling, "character")

    @classmethod
    def of(cls, tokenizer: Tokenizer, tokenization: Tokenization) -> "Writing":
        """Of any vocabulary."""
        characters = Spelling.of_characters(tokenizer)
        if tokenization == "whitespace":
            return cls(characters, Spelling.of_units(tokenizer.tokens), "symbol")
        return cls(characters, characters, "character")

    def cut(self, text: str) -> tuple[str, ...]:
        """The units of a text: its characters, or the symbols between its spaces."""
        return tuple(x for x in text.split(" ") if x) if self.unit == "symbol" else tuple(text)

    def is_unit(self, text: str) -> bool:
        """Whether a text is one unit once it is composed."""
        if self.unit == "symbol":
            return len(self.cut(text)) == 1
        return len(text) <= MAX_MARKS and len(unicodedata.normalize("NFC", text)) == 1
