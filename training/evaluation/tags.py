"""Labels of characters as tags: runs of characters with one label."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TypeAlias

from service.bundle.labeler import Labels

Span: TypeAlias = tuple[int, int, str]  # first character, one past the last, label


def tags(ids: Sequence[int], labels: Labels) -> list[Span]:
    """The tags of a text whose characters have the labels `ids`.

    Of BIO labels, an `I-x` that continues no tag x begins one (as CoNLL's conlleval counts them).
    """
    names = [labels.names[i] for i in ids]
    found = _bio(names) if labels.scheme == "bio" else _runs(names)
    return [span for span in found if span[2] != labels.outside]


def tagged_text(text: str, ids: Sequence[int], labels: Labels) -> str:
    """A text for people: with its labels applied, or its tags in brackets."""
    if labels.applied:
        names = (labels.names[i] for i in ids)
        return "".join(name or x for x, name in zip(text, names, strict=True))
    parts, end = [], 0
    for start, stop, label in tags(ids, labels):
        parts.append(f"{text[end:start]}[{text[start:stop]} {label}]")
        end = stop
    return "".join([*parts, text[end:]])


def _runs(names: Sequence[str]) -> Iterator[Span]:
    start = 0
    for name, run in groupby(names):
        stop = start + sum(1 for _ in run)
        yield start, stop, name
        start = stop


def _bio(names: Sequence[str]) -> Iterator[Span]:
    start, label = 0, ""  # of the tag that is open
    for i, name in enumerate([*names, ""]):
        prefix, dash, rest = name.partition("-")
        tag = rest if dash and prefix in ("B", "I") else ""
        if label and (tag != label or prefix == "B"):
            yield start, i, label
            label = ""
        if tag and not label:
            start, label = i, tag
