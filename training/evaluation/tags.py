"""Labels of characters as tags: runs of characters with one label."""

from collections.abc import Sequence
from typing import TypeAlias

from service.bundle.labeler import Labels

Span: TypeAlias = tuple[int, int, str]  # first character, one past the last, label


def tags(ids: Sequence[int], labels: Labels) -> list[Span]:
    """The tags of a text whose characters have the labels `ids`.

    With BIO labels, an `I-x` that continues no tag x begins one, as in CoNLL's conlleval.
    """
    found: list[Span] = []
    before = None  # the label of the tag that the last character is in
    for i, id_ in enumerate(ids):
        name = labels.names[id_]
        is_bio = labels.scheme == "bio" and name.startswith(("B-", "I-"))
        label = None if name == labels.outside else name[2:] if is_bio else name
        if label is not None and label == before and not (is_bio and name.startswith("B-")):
            start, _, _ = found.pop()
            found.append((start, i + 1, label))
        elif label is not None:
            found.append((i, i + 1, label))
        before = label
    return found


def tagged_text(text: str, ids: Sequence[int], labels: Labels) -> str:
    """A text for people: with its labels applied, or its tags in brackets."""
    if labels.applied:
        names = (labels.names[i] for i in ids)
        return "".join(name or x for x, name in zip(text, names, strict=True))
    parts, end = [], 0
    for start, stop, label in tags(ids, labels):
        parts.append(f"{text[end:start]}[{text[start:stop]}]({label})")
        end = stop
    return "".join([*parts, text[end:]])
