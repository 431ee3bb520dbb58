"""Texts with blanks, drawn from documents: where the blanks are, and how much text surrounds them.

Every text is drawn anew, from a generator that is an argument (dynamic masking, Liu et al. 2019,
section 4.1).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from service.bundle.infill import MARKS
from service.bundle.text import SPECIAL_TOKENS, UNK_ID
from training.config import SpansConfig
from training.data.corpus import Split

# If there is no place for a blank, another text is drawn, at most this many times in a row.
_MOST_DRAWS = 1000
_EDGES = 0.5  # share of the short sides that are cut at a line end, if there is one


@dataclass(frozen=True, slots=True)
class BlankedText:
    """Part of a document: its pieces, and the texts of the blanks between them."""

    pieces: tuple[str, ...]  # one more than there are blanks
    texts: tuple[str, ...]
    begins: bool  # the first piece begins the document
    ends: bool  # the last piece ends it

    @property
    def whole(self) -> str:
        """The text without blanks."""
        between = zip(self.texts, self.pieces[1:], strict=True)
        return self.pieces[0] + "".join(text + piece for text, piece in between)


class SpanDrawing:
    """Draws texts with blanks from a split; a blank is equally likely at each character."""

    def __init__(self, split: Split, tokens: tuple[str, ...], options: SpansConfig) -> None:
        """`tokens` are the printed tokens of the split's ids."""
        self._ids, self._starts = np.asarray(split.ids), np.asarray(split.starts)
        # A mark in a text is an ordinary character, which the model does not know.
        unknown = SPECIAL_TOKENS[UNK_ID]
        printed = [unknown if token in MARKS else token for token in tokens]
        self._code_points = np.array([ord(char) for char in printed], "<u4")
        self._options = options

    def texts(self, count: int, rng: np.random.Generator) -> Iterator[BlankedText]:
        """`count` texts, one by one."""
        for _ in range(count):
            yield self._text(rng)

    def _text(self, rng: np.random.Generator) -> BlankedText:
        """One text: a window around the first blank, in which the others follow."""
        options = self._options
        count = 1
        if options.max_blanks > 1 and rng.random() < options.several_share:
            count = int(rng.integers(2, options.max_blanks + 1))
        reach = options.context + options.max_chars
        for _ in range(_MOST_DRAWS):
            place = int(rng.integers(len(self._ids)))
            document = int(np.searchsorted(self._starts, place, "right")) - 1
            first = int(self._starts[document]) + 1  # after bos
            last = int(self._starts[document + 1]) - 1  # before eos
            if first <= place < last:
                break
        else:
            raise ValueError("a split without characters has no texts")
        begin = max(first, place - reach)
        end = min(last, place + (count + 1) * reach)
        window = self._code_points[self._ids[begin:end]].tobytes().decode("utf-32-le")
        spans = self._spans(window, place - begin, count, rng)
        return self._around(window, spans, begin == first, end == last, rng)

    def _spans(
        self, window: str, place: int, count: int, rng: np.random.Generator
    ) -> list[tuple[int, int]]:
        """Up to `count` blanks, the first at `place`, with up to the context between two."""
        spans = [self._span(window, place, 0, rng)]
        while len(spans) < count:
            free = spans[-1][1] + 1  # at least one character between two blanks
            start = free + int(rng.integers(self._options.context))
            # A word may begin before that.
            if start >= len(window):
                break
            spans.append(self._span(window, start, free, rng))
        return spans

    def _span(
        self, window: str, place: int, free: int, rng: np.random.Generator
    ) -> tuple[int, int]:
        """A blank at `place`, or the word there; it begins at `free` or later."""
        options = self._options
        kind = rng.random() - options.word_share
        if kind < 0.0:
            start, end = _word(window, place)
            if free <= start < end <= start + options.max_chars:
                return start, end
        if 0.0 <= kind < options.uniform_share:
            length = int(rng.integers(1, options.max_chars + 1))
        else:
            length = min(int(rng.geometric(options.geometric_p)), options.max_chars)
        return place, min(place + length, len(window))

    def _around(
        self,
        window: str,
        spans: list[tuple[int, int]],
        begins: bool,
        ends: bool,
        rng: np.random.Generator,
    ) -> BlankedText:
        """The text with these blanks; a side is sometimes cut short."""
        context = self._options.context
        starts = [0, *(end for _, end in spans)]
        stops = [*(start for start, _ in spans), len(window)]
        pieces = [window[x:y] for x, y in zip(starts, stops, strict=True)]
        begins = begins and len(pieces[0]) < context
        ends = ends and len(pieces[-1]) < context
        pieces[0], pieces[-1] = pieces[0][-context:], pieces[-1][:context]
        if rng.random() < self._options.short_share:
            cut, begins = self._cut(pieces[0][::-1], rng, begins)
            pieces[0] = pieces[0][len(pieces[0]) - cut :]
        if rng.random() < self._options.short_share:
            cut, ends = self._cut(pieces[-1], rng, ends)
            pieces[-1] = pieces[-1][:cut]
        texts = tuple(window[start:end] for start, end in spans)
        return BlankedText(tuple(pieces), texts, begins, ends)

    def _cut(self, piece: str, rng: np.random.Generator, at_edge: bool) -> tuple[int, bool]:
        """How many characters next to its blank a piece keeps, and whether they end at an edge.

        A line end may stand for an edge, so that a model of one long document learns edges.
        """
        lines = [i for i, char in enumerate(piece) if char == "\n"]
        if lines and rng.random() < _EDGES:
            return lines[int(rng.integers(len(lines)))], True
        cut = int(rng.integers(len(piece) + 1))
        return cut, at_edge and cut == len(piece)


def _word(window: str, place: int) -> tuple[int, int]:
    """The word at a place, or an empty range if there is white space or punctuation."""
    start = end = place
    while start > 0 and _in_word(window[start - 1]):
        start -= 1
    while end < len(window) and _in_word(window[end]):
        end += 1
    return (start, end) if _in_word(window[place]) else (place, place)


def _in_word(char: str) -> bool:
    return char.isalnum() or char == "'"
