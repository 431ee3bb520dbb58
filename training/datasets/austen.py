"""Jane Austen's six novels, split by whole chapters.

Source: the Debian package `r-cran-janeaustenr` (1.0.0), which has the texts of Project Gutenberg
as data for R. The novels are in the public domain, the package is under the MIT license.

In each novel, the 10th of every 20 chapters is for validation and the 20th for the test, so every
part has all six books, and whole chapters of text around whatever is taken out of it.
"""

import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from struct import Struct

from training.datasets.errors import DatasetError
from training.datasets.registry import cache_beside, debian_files

PACKAGE = "r-cran-janeaustenr"
FILE = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
SHA256 = "8fb5198960d0da724b1562f96e4221e5c1b41ff455000280b02c55980c3d8f21"

_EVERY = 20
_PART_OF = {_EVERY // 2: "valid", _EVERY: "test"}  # by the chapter's number within its twenty
_CHAPTER = re.compile(r"^CHAPTER [IVXLC\d]+$", re.IGNORECASE | re.MULTILINE)
_EDITORS_NOTE = "A NOTE ON THE TEXT"  # of a modern edition, after the end of Northanger Abbey

_WORD, _TWO_WORDS = Struct(">i"), Struct(">ii")
_XDR = b"X\n"
_HEADER = len(_XDR) + 3 * _WORD.size  # the mark and three versions; what follows is the encoding
_CHARSXP, _STRSXP = 9, 16  # types of R's objects, in the low byte of their flags
_UTF8_OR_ASCII = 0x8000 | 0x40000  # bits of a string's flags


def blocks(data: bytes) -> Iterator[bytes]:
    """The objects of a lazy-load database of R: each has its length (4 bytes) and is deflated.

    Raises DatasetError.
    """
    while data:
        inflater = zlib.decompressobj()
        try:
            block = inflater.decompress(data[_WORD.size :])
        except zlib.error as error:
            raise DatasetError("an object of the R data file is not deflated") from error
        if not inflater.eof or data[: _WORD.size] != _WORD.pack(len(block)):
            raise DatasetError("an object of the R data file does not have the length it states")
        yield block
        data = inflater.unused_data


def strings(block: bytes) -> list[str]:
    """A serialized character vector, read without R.

    Source: "R Internals", section 1.8, "Serialization Formats": version 3, XDR. Raises
    DatasetError if it is anything else, or if a string is neither ASCII nor UTF-8.
    """
    if not block.startswith(_XDR):
        raise DatasetError("the R data file is not in the XDR format")
    place = _HEADER
    (length,) = _WORD.unpack_from(block, place)
    place += _WORD.size + length
    flags, count = _TWO_WORDS.unpack_from(block, place)
    if flags & 0xFF != _STRSXP:
        raise DatasetError("the R data file holds something else than lines of text")
    place += _TWO_WORDS.size
    found = []
    for _ in range(count):
        flags, length = _TWO_WORDS.unpack_from(block, place)
        place += _TWO_WORDS.size
        if flags & 0xFF != _CHARSXP or not flags & _UTF8_OR_ASCII or length < 0:
            raise DatasetError("the R data file holds a line that is not UTF-8 text")
        found.append(block[place : place + length].decode())
        place += length
    return found


def split(novel: str) -> dict[str, str]:
    """The text of each part; what precedes the first chapter is for training, as that chapter."""
    starts = [match.start() for match in _CHAPTER.finditer(novel)]
    ends = [*starts[1:], len(novel)]
    parts = {"train": novel[: starts[0]], "valid": "", "test": ""}
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        parts[_PART_OF.get(number % _EVERY + 1, "train")] += novel[start:end]
    return parts


def build(folder: Path) -> list[str]:
    """Write train.txt, valid.txt and test.txt. Raises DatasetError."""
    data = debian_files(PACKAGE, {FILE: SHA256}, cache_beside(folder))[FILE]
    parts: dict[str, str] = {}
    for block in blocks(data):
        novel = "\n".join(strings(block)).partition(_EDITORS_NOTE)[0].rstrip() + "\n\n\n\n"
        for name, text in split(novel).items():
            parts[name] = parts.get(name, "") + text
    lines = []
    for name, text in parts.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8", newline="")
        lines.append(f"{name}.txt: {len(text):,} characters")
    return lines
