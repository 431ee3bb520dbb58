"""Cuts a long text or a page of HTML into pieces, which a model translates one by one.

Lines are pieces of their own. A line that is too long for the model is cut between its sentences,
and a sentence that is too long is cut at blanks. Everything between the pieces stays as it was:
line ends, blanks, tags. So does markup that cannot be parsed in one pass, such as an unclosed tag.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from html import escape, unescape
from typing import NamedTuple

Fits = Callable[[str], bool]


class Piece(NamedTuple):
    """A part of a text, which is translated or stays as it is."""

    text: str
    is_source: bool


def pieces_of(text: str, fits: Fits, *, html: bool) -> Iterator[Piece]:
    """The parts of a text or a page, in order; whatever stays up to the next source is one part."""
    if not html:
        yield from _pieces_of_text(text, fits)
        return
    position = 0
    for start, end, shown in _texts(text):
        if start > position:
            yield Piece(text[position:start], is_source=False)
        for piece in _pieces_of_text(shown, fits):
            kept = piece.text if piece.is_source else escape(piece.text, quote=False)
            yield Piece(kept, piece.is_source)
        position = end
    if position < len(text):
        yield Piece(text[position:], is_source=False)


def joined(pieces: Sequence[Piece], translations: Iterator[str], *, html: bool) -> str:
    """The parts joined, with each source replaced by its translation."""
    return "".join(
        (escape(next(translations), quote=False) if html else next(translations))
        if piece.is_source
        else piece.text
        for piece in pieces
    )


# --- text -----------------------------------------------------------------------------------------

_LINE = re.compile(r"\S(?:[^\r\n]*\S)?")  # without the blanks around it
# A blank, or the place after an ideographic full stop and any closing quotes or brackets.
_BREAKS = re.compile(
    r"\s+|(?<=[。！？])(?![。！？」』”’）\s])|(?<=[。！？][」』”’）])(?![」』”’）\s])"  # noqa: RUF001
)
_ENDS = (".", "!", "?", "…")
_CLOSERS = "\"'”’»)]"  # noqa: RUF001


def _pieces_of_text(text: str, fits: Fits) -> Iterator[Piece]:
    position = 0
    for match in _LINE.finditer(text):
        if match.start() > position:
            yield Piece(text[position : match.start()], is_source=False)
        yield from _pieces_of_line(match[0], fits)
        position = match.end()
    if position < len(text):
        yield Piece(text[position:], is_source=False)


def _pieces_of_line(line: str, fits: Fits) -> Iterator[Piece]:
    """One piece if the line fits; else its sentences, or as many of their words as fit."""
    if fits(line):
        yield Piece(line, is_source=True)
        return
    start = 0
    for match in _BREAKS.finditer(line):
        before = line[max(0, match.start() - 4) : match.start()].rstrip(_CLOSERS)
        if not match[0] or before.endswith(_ENDS):
            yield from _pieces_of_sentence(line[start : match.start()], fits)
            if match[0]:
                yield Piece(match[0], is_source=False)
            start = match.end()
    if start < len(line):
        yield from _pieces_of_sentence(line[start:], fits)


def _pieces_of_sentence(sentence: str, fits: Fits) -> Iterator[Piece]:
    if fits(sentence):
        yield Piece(sentence, is_source=True)
        return
    start = end = 0  # of the piece so far
    for match in re.finditer(r"\S+", sentence):
        if end and not fits(sentence[start : match.end()]):
            yield Piece(sentence[start:end], is_source=True)
            yield Piece(sentence[end : match.start()], is_source=False)
            start = match.start()
        end = match.end()
    # A word that is too long is a piece as well: the model refuses it, with its limit.
    yield Piece(sentence[start:end], is_source=True)


# --- HTML -----------------------------------------------------------------------------------------

_HTML_BLANKS = re.compile(r"(?<=[^ \t\n\f\r])[ \t\n\f\r]+(?=[^ \t\n\f\r])")
# A quote opens a value only at the value's start: `title=it's` is read as browsers read it.
_TAG = re.compile(
    r"""<(/?)([A-Za-z][^\s/>]*+)(?:[^>=]++|=\s*+(?:"[^"]*+"|'[^']*+'|(?!["'])[^\s>]*+))*+>"""
)
_TAG_BEGINS = re.compile(r"<(?:/?[A-Za-z]|[!?])")
_KEPT = frozenset({"code", "pre"})
_NOT_MARKUP = frozenset({"script", "style", "textarea"})  # up to their end tags
_VOID = frozenset(
    (
        "area",
        "base",
        "br",
        "col",
        "embed",
        "hr",
        "img",
        "input",
        "link",
        "meta",
        "param",
        "source",
        "track",
        "wbr",
    )
)
_NO_TRANSLATION = re.compile(
    r"""\stranslate\s*=\s*["']?no["'\s/>]"""
    r"""|\sclass\s*=\s*(?:["'](?:[^"']*\s)?)?notranslate["'\s/>]""",
    re.IGNORECASE,
)


def _texts(html: str) -> Iterator[tuple[int, int, str]]:
    """The spans of the texts between the tags, and what a reader sees of them."""
    position = 0
    kept = ""  # the element that is left untranslated, with all its content
    depth = 0
    for begin in _TAG_BEGINS.finditer(html):
        if begin.start() < position:
            continue
        if not kept:
            yield from _text(html, position, begin.start())
        position = _end_of_markup(html, begin.start())
        tag = _TAG.fullmatch(html, begin.start(), position)
        if tag is None:
            continue
        closes, name = bool(tag[1]), tag[2].lower()
        if not closes and name in _NOT_MARKUP:
            ends = re.compile(rf"</{name}\b", re.IGNORECASE).search(html, position)
            position = ends.start() if ends else len(html)
        elif not kept and not closes and (name in _KEPT or _NO_TRANSLATION.search(tag[0])):
            if name not in _VOID and not tag[0].endswith("/>"):
                kept, depth = name, 1
        elif kept and name == kept:
            depth += -1 if closes else 1
            kept = kept if depth else ""
    if not kept:
        yield from _text(html, position, len(html))


def _text(html: str, start: int, end: int) -> Iterator[tuple[int, int, str]]:
    """One such span, if it has a word: a comma or a bullet needs no translation."""
    try:
        # In HTML, a run of white space counts as one blank.
        shown = _HTML_BLANKS.sub(" ", unescape(html[start:end]))
    except ValueError:  # a character reference of thousands of digits
        return
    if any(map(str.isalnum, shown)):
        yield start, end, shown


def _end_of_markup(html: str, start: int) -> int:
    """Where a tag or a comment ends; the end of the text if it is never closed."""
    if html.startswith("<!--", start):
        for empty in ("<!-->", "<!--->"):
            if html.startswith(empty, start):
                return start + len(empty)
        end = html.find("-->", start + 4)
        return len(html) if end < 0 else end + 3
    tag = _TAG.match(html, start)
    if tag is not None:
        return tag.end()
    if html.startswith(("<!", "<?"), start):
        end = html.find(">", start)
        return len(html) if end < 0 else end + 1
    return len(html)
