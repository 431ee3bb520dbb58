"""What a text can lose, character by character: accents, case.

Accents: a character is decomposed canonically (NFD of Unicode Standard Annex 15), its nonspacing
marks (category Mn) are dropped, and what is left must be one character. Unicode does not decompose
letters with a stroke, the dotless i and the like: `STROKED` lists those. Ligatures and letters of
their own (æ, ß, þ) stay.

Case: a character's lower case, where that is one character: not that of İ, which becomes two.
"""

import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Literal, TypeAlias

Loss: TypeAlias = Literal["accents", "case"]
LOSSES: tuple[tuple[Loss, ...], ...] = (("accents",), ("case",), ("accents", "case"))

STROKED = {
    "đ": "d", "ħ": "h", "\u0131": "i", "ł": "l", "ø": "o", "ŧ": "t", "ƀ": "b", "ɨ": "i", "ƶ": "z",
    "Đ": "D", "Ħ": "H", "Ł": "L", "Ø": "O", "Ŧ": "T", "Ƀ": "B", "Ɨ": "I", "Ƶ": "Z",
}  # fmt: skip


@cache
def lost_character(character: str, loss: tuple[Loss, ...]) -> str:
    """What is left of a character: one character, perhaps itself."""
    if "accents" in loss:
        character = _bare(character)
    if "case" in loss:
        lower = character.lower()
        character = lower if len(lower) == 1 else character
    return character


def lost(text: str, loss: Sequence[Loss]) -> str:
    """What is left of a text: as many characters."""
    losses = tuple(loss)
    return "".join(lost_character(character, losses) for character in text)


def _bare(character: str) -> str:
    decomposed = unicodedata.normalize("NFD", character)
    kept = [x for x in decomposed if unicodedata.category(x) != "Mn"]
    if len(kept) == 1 and len(decomposed) > 1:
        character = kept[0]
    return STROKED.get(character, character)
