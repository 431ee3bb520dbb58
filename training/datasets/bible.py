"""Verses, English to Spanish: the World English Bible and the Reina-Valera of 1909.

Source: the Debian packages `sword-text-web` (426.0) and `sword-text-sparv` (2.60), both texts in
the public domain; read with `pysword` (MIT). "World English Bible" is a trademark: a changed text
must not be called so, and what a model says is a changed text.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from pysword.bible import SwordBible  # type: ignore[import-untyped]

from training.datasets.pairs import Pair, dropped_text, write_pairs
from training.datasets.registry import cache_beside, debian_files

MAX_SOURCE_CHARS, MAX_TARGET_CHARS = 120, 240

Reference = tuple[str, int, int]  # book, chapter, verse


@dataclass(frozen=True, kw_only=True, slots=True)
class Module:
    """A SWORD module: compressed verses, found by the tables of a numbering of verses."""

    package: str
    folder: str
    versification: str
    sha256: Mapping[str, str]  # by the name of the file


ENGLISH = Module(
    package="sword-text-web",
    folder="usr/share/sword/modules/texts/ztext/engWEB2015eb",
    versification="nrsva",
    sha256={
        "nt.bzs": "bec87a360bbc6bfbcd7de513edf928ceebb428dd2baff813aebf521bb0c6cc83",
        "nt.bzv": "bb7a522d8323ccd7be462fca4dcd53c06d966c140fe260a6295e05393d259338",
        "nt.bzz": "5429389d9331b7a86901a73afa74f32d089cae3d5bd8dfe304b11808714a69ba",
        "ot.bzs": "2c16645bb829c05b20f39769e1fa23212743335143833a819f29e412c6def8ce",
        "ot.bzv": "dbd3b762b7159c5dd4b535f75b6ab643fb62ae44f4655aff3c5098a955a1ae57",
        "ot.bzz": "4633066d3872f1a3e600d2d10e667a13cd6c32bf116ca971d3c8f288bc3ea453",
    },
)
SPANISH = Module(
    package="sword-text-sparv",
    folder="usr/share/sword/modules/texts/ztext/spaRV1909eb",
    versification="kjv",
    sha256={
        "nt.bzs": "b88dda1e9ab50d158262ab141af7823269acb19c581621683298be5b6e154d58",
        "nt.bzv": "a9583ba1b4c66dfdd8bfb6a0b1833bdaa02f9e2cc3465c5a802cf19cbc2f2533",
        "nt.bzz": "7baf6b1e798b193315fed89d0e84e8e1a033d035316f66c78d456f5fb8c87e20",
        "ot.bzs": "0e39106ae15a29cef56feac683f8482be380536a1c456e006867f9fa94c0338e",
        "ot.bzv": "0f23b1ebff5ecdd352a64feda5bb047cba27ce3624fa7b00717f763835d96e20",
        "ot.bzz": "daae868e179e6cc884ad2c9429a9dfaf9745d61caa6dbb9da2a8b24ec3c01337",
    },
)

# Left out of the verse: notes, speakers, and headings, except a psalm's, which is part of the text.
_ASIDE = re.compile(
    r"<note\b.*?</note>|<speaker\b.*?</speaker>|<title\b(?![^>]*canonical=\"true\").*?</title>"
)
_TAG = re.compile(r"<[^>]*>")
_BLANK_BEFORE = re.compile(r" +(?=[,.;:!?)\u201d\u2019])")


def clean(osis: str) -> str:
    """The text of an OSIS verse: without notes, tags, paragraph signs and runs of blanks."""
    # A note may replace a blank, as in "knew<note>...</note>Eve", but it may also precede a comma.
    text = _TAG.sub("", _ASIDE.sub(" ", osis)).replace("¶", " ")
    return _BLANK_BEFORE.sub("", " ".join(text.split()))


def align(source: Mapping[Reference, str], target: Mapping[Reference, str]) -> list[Pair]:
    """Verses with the same reference in both, in the order of the source."""
    both = [(text, target.get(reference, "")) for reference, text in source.items()]
    return [(first, second) for first, second in both if first and second]


def build(folder: Path) -> list[str]:
    """Write `verses.tsv`; this takes a minute."""
    cache = cache_beside(folder)
    aligned = align(dict(_verses(ENGLISH, cache)), dict(_verses(SPANISH, cache)))
    kept: list[Pair] = []
    dropped: Counter[str] = Counter()
    for source, target in aligned:
        if len(source) > MAX_SOURCE_CHARS:
            dropped[f"with a source of more than {MAX_SOURCE_CHARS} characters"] += 1
        elif len(target) > MAX_TARGET_CHARS:
            # Where the two number verses differently, the target holds the next verse too.
            dropped[f"with a target of more than {MAX_TARGET_CHARS}"] += 1
        else:
            kept.append((source, target))
    return [
        f"{len(aligned):,} verses in both{dropped_text(dropped)}",
        write_pairs(folder / "verses.tsv", kept),
    ]


def _verses(module: Module, cache: Path) -> Iterator[tuple[Reference, str]]:
    digests = {f"{module.folder}/{name}": digest for name, digest in module.sha256.items()}
    with TemporaryDirectory() as folder:  # pysword reads from a folder only
        for name, data in debian_files(module.package, digests, cache).items():
            Path(folder, PurePosixPath(name).name).write_bytes(data)
        bible = SwordBible(folder, "ztext", module.versification, "utf-8", "OSIS")
        for books in bible.get_structure().get_books().values():
            for book in books:
                for chapter, verses in enumerate(book.chapter_lengths, 1):
                    for verse in range(1, verses + 1):
                        text = bible.get(
                            books=[book.name], chapters=[chapter], verses=[verse], clean=False
                        )
                        yield (book.name, chapter, verse), clean(text)
