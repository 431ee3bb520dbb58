"""Pairs of texts as lines of a TSV file."""

from collections import Counter
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

Pair = tuple[str, str]  # source, target


def write_pairs(path: Path, pairs: Iterable[Pair]) -> str:
    """Write `source TAB target` lines; returns a line with the counts.

    A pair is dropped, and counted, where a field is empty or holds a tab or a line break of any
    kind that `str.splitlines` knows, and where it repeats an earlier pair.
    """
    kept: dict[Pair, None] = {}
    dropped: Counter[str] = Counter()
    for pair in pairs:
        if not all(_is_field(text) for text in pair):
            dropped["empty or with a tab or line break"] += 1
        elif pair in kept:
            dropped["repeated"] += 1
        else:
            kept[pair] = None
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{source}\t{target}\n" for source, target in kept)
    path.write_bytes(text.encode())  # not write_text: LF on every platform
    sources = len({source for source, _ in kept})
    line = f"{path.name}: {len(kept):,} pairs of {sources:,} sources"
    return line + dropped_text(dropped)


def dropped_text(dropped: Counter[str]) -> str:
    """The counts by reason, largest first, for the end of a line."""
    if not dropped:
        return ""
    return "; dropped: " + ", ".join(
        f"{count:,} {reason}" for reason, count in sorted(dropped.items(), key=lambda x: (-x[1], x))
    )


def by_digest(texts: Iterable[str]) -> list[str]:
    """The texts in the order of their SHA-256: the same shuffle on every machine."""
    return sorted(texts, key=lambda text: sha256(text.encode()).digest())


def _is_field(text: str) -> bool:
    return "\t" not in text and text.splitlines() == [text]
