"""What was read, kept and dropped while data were prepared, in words."""

from collections.abc import Mapping

_PURPOSES = {"train": "to train", "valid": "to validate", "test": "to test"}


def in_words(counts: Mapping[str, int]) -> str:
    """The counts in one line: what was read first, and what became of it last."""
    names = sorted(counts, key=lambda name: (name in _PURPOSES) - (name == "read"))
    return ", ".join(f"{counts[name]:,} {_counted(name, counts)}" for name in names)


def _counted(name: str, counts: Mapping[str, int]) -> str:
    """What was counted: `dropped: empty` is `dropped (empty)`."""
    if name in _PURPOSES:
        return _PURPOSES[name]
    if counts[name] == 1 and name in {"files", "lines"}:
        return name[:-1]
    what, colon, why = name.partition(": ")
    return f"{what} ({why})" if colon else name
