"""Text to ids and back: normalization (NFC, folding, case) and the character vocabulary."""

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from service.bundle.arrays import Ids
from service.bundle.marks import TooManyMarks, check_marks

PAD_ID, BOS_ID, EOS_ID, UNK_ID = 0, 1, 2, 3

# Printed forms from Unicode's private use area, so that no ordinary text collides with them. The
# same code points in a text are unknown characters, never special tokens.
SPECIAL_TOKENS = ("\ue000", "\ue001", "\ue002", "\ue003")

_MAX_TOKENS = int(np.iinfo(np.uint16).max)
_CODE_POINTS = 0x110000
# Characters normalized in one call. Python holds its lock meanwhile; this many take a few
# milliseconds.
_PART = 1 << 17
# Characters looked up one by one: numpy gives up Python's lock, and to get it back from an engine's
# thread takes the event loop longer than all of this.
_SHORT = 256
# Characters examined on each side of a cut; characters that compose are adjacent.
_NEIGHBOURS = 32
_MOST_TRIED = 512  # most places tried for a cut if there is no blank

# What `fold` replaces. Nothing composes with a plain form, so a text can be folded in parts.
_PLAIN = (
    dict.fromkeys([0x02BC, *range(0x2018, 0x201C)], "'")
    | dict.fromkeys(range(0x201C, 0x2020), '"')
    | dict.fromkeys([*range(0x2010, 0x2016), 0x2212], "-")
    | {0x2026: "..."}
    | dict.fromkeys([0x00A0, *range(0x2000, 0x200B), 0x202F, 0x205F], " ")
)


class Normalization(BaseModel):
    """What is done to every text before its characters are looked up, in this order."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    newlines: bool = Field(True, description="CR LF and a lone CR become LF.")
    fold: bool = Field(
        False,
        description=(
            "Typographic punctuation becomes the plain form: the single quotation marks U+2018 to "
            "U+201B and the letter apostrophe U+02BC become '; the double ones U+201C to U+201F "
            'become "; hyphens, dashes and the minus sign (U+2010 to U+2015, U+2212) become -; the '
            "ellipsis U+2026 becomes ...; no-break and other spaces (U+00A0, U+2000 to U+200A, "
            "U+202F, U+205F) become a space. For a vocabulary without the typographic forms."
        ),
    )
    lowercase: bool = Field(False, description="`str.lower`: full Unicode lower case.")
    ascii_fold: bool = Field(
        False,
        description=(
            "Decompose (NFD) and drop the combining marks, so that é becomes e, as the classic "
            "character RNN recipe does. What has no ASCII base letter stays, and is unknown."
        ),
    )
    nfc: bool = Field(True, description="Unicode normalization form C (UAX 15).")
    strip: bool = Field(
        False,
        description=(
            "White space and line ends at both ends are dropped (`str.strip`). What is empty then "
            "was never trained on. For encoder-decoders alone: a language model reads a text in "
            "parts, and a blank at the end of a prompt means something."
        ),
    )


class SideNormalization(Normalization):
    """The same for a side of an encoder-decoder, which is stripped unless the manifest says no."""

    # Training has always stripped pairs, but older manifests lack this field.
    strip: bool = Field(True, description=Normalization.model_fields["strip"].description)


def normalize(text: str, rules: Normalization) -> str:
    """The text as the model reads it, in training and in serving.

    Idempotent if the result has at most MAX_MARKS marks in a row. Raises TooManyMarks.
    """
    text = _normalized(text, rules)
    # Last: all blanks are plain by now, and a part of a text in NFC is in NFC.
    return text.strip() if rules.strip else text


def is_blank(text: str) -> bool:
    """Whether a text is empty or white space only; such pairs are not trained on."""
    return not text or text.isspace()


def last_cut(
    text: str, rules: Normalization, *, searched: int = 0, blanks_only: bool = False
) -> int:
    """The last place where a text may be cut so that its parts normalize alone; 0 for nowhere.

    That is before a blank or a line end, of which the first `searched` characters have none. Where
    there is no blank it is between characters that neither compose nor change each other's lower
    case: one of a few hundred places, not the last ones, since what follows the text may compose
    with its end.
    """
    # The searched part may end between the two characters of a line end.
    cut = max(text.rfind(" ", searched), text.rfind("\n", searched))
    if cut > 0 and text[cut - 1] == "\r":
        cut -= 1
    if cut > 0:
        return cut
    if blanks_only:
        return 0
    last = len(text) - _NEIGHBOURS
    places = range(last, max(0, last - _MOST_TRIED), -1)
    return next((place for place in places if _parts_at(text, place, rules)), 0)


def _parts_at(text: str, place: int, rules: Normalization) -> bool:
    """Whether the text before and the text after have the normal form of both together."""
    before, after = _around(text, place)
    # A line end may be two characters.
    if before.endswith("\r") or not _composes_apart(text, place):
        return False
    if rules.lowercase and (_looks_past(before[-1]) or _looks_past(after[0])):
        return False
    try:
        whole = _normalized(before + after, rules)
    except TooManyMarks:
        return False
    # Dropping accents and lowering case can bring other characters together.
    return whole == _normalized(before, rules) + _normalized(after, rules)


def _looks_past(character: str) -> bool:
    """Whether a sigma's lower case, final or not, can depend on what lies beyond a character.

    This is true of sigmas themselves, and of characters that Unicode calls case-ignorable.
    """
    if character == "\u03a3":
        return True
    alone, before_letter = f"A\u03a3{character}".lower(), f"A\u03a3{character}A".lower()
    return alone[1] != before_letter[1]


def _around(text: str, place: int) -> tuple[str, str]:
    return text[max(0, place - _NEIGHBOURS) : place], text[place : place + _NEIGHBOURS]


def _composes_apart(text: str, place: int) -> bool:
    before, after = _around(text, place)
    whole = unicodedata.normalize("NFC", before + after)
    parts = unicodedata.normalize("NFC", before) + unicodedata.normalize("NFC", after)
    return whole == parts and not unicodedata.combining(after[0])


def _parts(text: str) -> Iterator[str]:
    """The text, cut where nothing composes across the cut."""
    start = 0
    while len(text) - start > _PART:
        end = start + _PART
        # This ends soon: runs of marks are short, and few other characters compose.
        while end < len(text) and not _composes_apart(text, end):
            end += 1
        yield text[start:end]
        start = end
    yield text[start:]


def _in_parts(text: str, step: Callable[[str], str]) -> str:
    return "".join(map(step, _parts(text)))


def _normalized(text: str, rules: Normalization) -> str:
    if rules.newlines:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if text.isascii():
        return text.lower() if rules.lowercase else text
    check_marks(text)
    if rules.fold:
        text = _in_parts(text, lambda part: part.translate(_PLAIN))
    if rules.lowercase:
        text = text.lower()
    if rules.ascii_fold:
        text = _in_parts(text, _without_accents)
    # Composing comes last: lower case and folding can leave characters that compose.
    return _composed(text) if rules.nfc else text


def _composed(text: str) -> str:
    # Most texts are in NFC already and need no copy.
    if all(unicodedata.is_normalized("NFC", part) for part in _parts(text)):
        return text
    return _in_parts(text, partial(unicodedata.normalize, "NFC"))


def _without_accents(text: str) -> str:
    decomposed = unicodedata.normalize("NFD", text)
    return "".join(char for char in decomposed if unicodedata.category(char) != "Mn")


def check_tokens(tokens: Sequence[str]) -> None:
    """Check what every vocabulary's tokens must satisfy. Raises ValueError."""
    if tuple(tokens[: len(SPECIAL_TOKENS)]) != SPECIAL_TOKENS:
        raise ValueError("a vocabulary starts with the printed forms of pad, bos, eos and unk")
    if len(set(tokens)) != len(tokens):
        raise ValueError("a vocabulary holds each token once")
    if len(tokens) > _MAX_TOKENS:
        raise ValueError(f"a vocabulary has at most {_MAX_TOKENS:,} tokens")


class Vocabulary:
    """A character vocabulary: `tokens[id]` is a printed token, the first four are special.

    Raises ValueError when the list does not start with `SPECIAL_TOKENS`, repeats a token or holds
    a token that is not one character, or half of one (a surrogate).
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        self.tokens = tuple(tokens)
        check_tokens(self.tokens)
        if any(len(token) != 1 for token in self.tokens):
            raise ValueError("every token of a character vocabulary is exactly one character")
        if any("\ud800" <= token <= "\udfff" for token in self.tokens):
            raise ValueError("a lone surrogate is not a character")
        code_points = [ord(token) for token in self.tokens[len(SPECIAL_TOKENS) :]]
        self._id_of_char = {x: i for i, x in enumerate(self.tokens) if i >= len(SPECIAL_TOKENS)}
        # 2 MiB a vocabulary buys a lookup without a Python loop over characters.
        self._id_of_code_point = np.full(_CODE_POINTS, UNK_ID, dtype=np.uint16)
        first_id = len(SPECIAL_TOKENS)
        self._id_of_code_point[code_points] = np.arange(first_id, len(self.tokens))

    @classmethod
    def of_characters(cls, characters: Iterable[str]) -> Self:
        """The special tokens and then the characters, sorted; private-use collisions dropped."""
        return cls([*SPECIAL_TOKENS, *sorted(set(characters) - set(SPECIAL_TOKENS))])

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, text: str) -> Ids:
        """Ids of the characters, [len(text)]; `UNK_ID` for those not in the vocabulary."""
        if len(text) <= _SHORT:
            found = self._id_of_char
            return np.array([found.get(char, UNK_ID) for char in text], np.uint16)
        ids = np.empty(len(text), np.uint16)
        # In parts: the intermediate arrays take six times the memory of the ids.
        for start in range(0, len(text), _PART):
            part = text[start : start + _PART]
            # surrogatepass: a lone surrogate is one unknown character, not an error here.
            code_points = np.frombuffer(part.encode("utf-32-le", "surrogatepass"), dtype="<u4")
            ids[start : start + _PART] = self._id_of_code_point[code_points]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The characters of the ids; special tokens have no text and are left out."""
        return "".join(self.tokens[i] for i in ids if i >= len(SPECIAL_TOKENS))
