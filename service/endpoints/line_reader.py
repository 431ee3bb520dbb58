"""Bytes that arrive in pieces, as lines or as one text, in bounded memory."""

import codecs
from dataclasses import dataclass

from service.bundle.text import Normalization, last_cut


@dataclass(frozen=True, slots=True)
class Line:
    """A line without its end; `content` is None where it was too long."""

    number: int  # from 1
    content: bytes | None


class LineSplitter:
    """Splits bytes into lines. Nothing is kept of a line that is too long."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held = bytearray()
        self._too_long = False
        self._number = 0
        self._began = False

    def feed(self, data: bytes) -> list[Line]:
        """The lines that these bytes end."""
        *ended, rest = data.split(b"\n")
        lines = []
        for part in ended:
            self._hold(part)
            lines.append(self._line())
        if rest:
            self._hold(rest)
        return lines

    def end(self) -> list[Line]:
        """The last line, where bytes came after the last line's end."""
        return [self._line()] if self._began else []

    def _hold(self, part: bytes) -> None:
        self._began = True
        if not self._too_long and len(self._held) + len(part) <= self._max_bytes:
            self._held += part
        else:
            self._too_long = True
            self._held.clear()

    def _line(self) -> Line:
        self._number += 1
        content = None if self._too_long else bytes(self._held).removesuffix(b"\r")
        if content is not None and self._number == 1:
            # What editors put before UTF-8 is no part of a text.
            content = content.removeprefix(codecs.BOM_UTF8)
        self._held.clear()
        self._too_long = self._began = False
        return Line(self._number, content)


class TextSplitter:
    """A text from UTF-8, in parts that can be normalized apart.

    The parts' normal forms, one after another, are the normal form of the whole text: a part ends
    before a blank or a line end, and where none comes for long between characters that do not
    compose. Raises UnicodeDecodeError where the bytes are not UTF-8, and ValueError where
    `max_chars` characters hold no place for a cut.
    """

    def __init__(self, max_chars: int, rules: Normalization) -> None:
        self._rules = rules
        self._searched = 0  # characters of `held` among which there is no blank to cut before
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("strict")
        self._max_chars = max_chars
        self._held = ""
        self.read_bytes = 0  # that came, and are UTF-8 but for the last three at most

    def feed(self, data: bytes) -> str:
        """As much of the text as is sure now; it may be empty."""
        self._held += self._decoder.decode(data)
        self.read_bytes += len(data)
        cut = self._last_cut()
        if cut:
            self._searched = 0
        part, self._held = self._held[:cut], self._held[cut:]
        return part

    def end(self) -> str:
        """The rest."""
        part = self._held + self._decoder.decode(b"", final=True)
        self._held = ""
        return part

    def _last_cut(self) -> int:
        """Where the text may be cut; 0 for nowhere."""
        searched, self._searched = self._searched, len(self._held)
        enough = len(self._held) <= self._max_chars
        cut = last_cut(self._held, self._rules, searched=searched, blanks_only=enough)
        if not cut and not enough:
            raise ValueError("the text holds no place to cut it")
        return cut
