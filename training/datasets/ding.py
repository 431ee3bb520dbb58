"""Everyday English to German: the word list of the dictionary program Ding.

Source: `/usr/share/trans/de-en` in the Debian package `trans-de-en` (1.9), by Frank Richter, GPL 2
or later. For a user's own training: neither the pairs nor a model trained on them may ship with
this project.

A line is `german | german :: english | english`. Its sub-entries correspond one to one: the first
is the headword, the others are its forms, compounds and sentences. A sub-entry lists variants,
separated by `;`. These do not correspond, so only the first variant is used. `{m}`,
`(at the counter)`, `[techn.]`, `<other spelling>` and `/ABBR/` are annotations.
"""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from training.datasets.pairs import Pair, dropped_text, write_pairs
from training.datasets.registry import cache_beside, debian_files

FILE = "usr/share/trans/de-en"
SHA256 = "34052c6021d09eadfee7a893a789204265954df70fe9c36d38fa00058d79d326"
LICENCE = "GPL 2 or later: what is trained on these pairs must not ship with this project"

_ANNOTATION = re.compile(r"\{[^{}]*\}|\([^()]*\)|\[[^][]*\]|<[^<>]*>|(?:^|(?<=\s))/[^/]*/(?!\w)")
_LEFT_OVER = re.compile(r"[][{}()<>~]")


def first_variant(text: str) -> str:
    """The first variant of a sub-entry, without annotations."""
    # Annotations first: they hold semicolons too, and one may stand in another.
    while (shorter := _ANNOTATION.sub(" ", text)) != text:
        text = shorter
    variants = (" ".join(part.split()) for part in text.split(";"))
    return next((part for part in variants if part), "")


def parse(lines: Iterable[str]) -> tuple[list[Pair], Counter[str]]:
    """English and German by sub-entry, each pair once, and the number dropped for each reason."""
    kept: dict[Pair, None] = {}  # in order
    dropped: Counter[str] = Counter()
    for line in lines:
        if line.startswith("#") or not line.strip():
            continue
        german, _, english = line.partition(" :: ")
        if german.count("|") != english.count("|"):
            dropped["lines whose sub-entries do not correspond"] += 1
            continue
        for source_part, target_part in zip(english.split("|"), german.split("|"), strict=True):
            pair = first_variant(source_part), first_variant(target_part)
            if not all(pair):
                dropped["empty"] += 1
            elif any("/" in text for text in pair):
                dropped["with alternatives (a/b)"] += 1
            elif any(_LEFT_OVER.search(text) for text in pair):
                dropped["with an annotation left open"] += 1
            elif pair in kept:
                dropped["repeated"] += 1
            else:
                kept[pair] = None
    return list(kept), dropped


def build(folder: Path) -> list[str]:
    """Write `pairs.tsv` and `NOTICES.txt`."""
    text = debian_files("trans-de-en", {FILE: SHA256}, cache_beside(folder))[FILE].decode()
    lines = text.splitlines()
    pairs, dropped = parse(lines)
    notice = [line.lstrip("# ") for line in lines[:10] if line.startswith("#")]
    (folder / "NOTICES.txt").write_bytes("".join(f"{x}\n" for x in [*notice, LICENCE]).encode())
    return [LICENCE, write_pairs(folder / "pairs.tsv", pairs) + dropped_text(dropped)]
