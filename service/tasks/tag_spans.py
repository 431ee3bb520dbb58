"""From a label for each character to tags: characters that belong together.

T characters, L labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from service.bundle.arrays import BoolArray, Ids, Int64Array
from service.bundle.labeler import Labels

_OUTSIDE = -1


@dataclass(frozen=True, slots=True)
class TagScheme:
    """How labels become tags.

    Neighbours whose labels are of one kind form a tag, unless the later one begins a new tag.
    """

    names: Sequence[str]  # of the kinds of tags
    kinds: Int64Array  # [L] the kind of tag of each label, or `_OUTSIDE`
    begins: BoolArray  # [L] whether a label begins a tag, whatever stands before it

    @classmethod
    def of(cls, labels: Labels) -> Self:
        """The scheme of a manifest's labels.

        With `bio`, an `I-x` that follows neither `B-x` nor `I-x` also begins a tag, as in the
        evaluation of CoNLL-2000. If labels are characters, each is a tag by itself.
        """
        names = labels.names
        begins = [labels.applied] * len(names)
        if labels.scheme == "bio":
            begins = [name.startswith("B-") for name in names]
            names = [name[2:] if name.startswith(("B-", "I-")) else name for name in names]
        kind_of_name = {name: kind for kind, name in enumerate(dict.fromkeys(names))}
        kinds = [
            _OUTSIDE if label == labels.outside else kind_of_name[name]
            for label, name in zip(labels.names, names, strict=True)
        ]
        return cls(list(kind_of_name), np.array(kinds, np.int64), np.array(begins, np.bool_))

    def spans(self, labels: Ids) -> list[tuple[int, int, int]]:
        """Start, end and kind of every tag of `labels` [T], in order."""
        kinds = self.kinds[labels]
        before = np.append(_OUTSIDE, kinds[:-1])[: len(kinds)]
        changes = kinds != before
        starts = np.flatnonzero((kinds != _OUTSIDE) & (changes | self.begins[labels]))
        # A tag ends where the next one begins, or where the first character outside follows.
        stops = np.flatnonzero(changes | self.begins[labels])
        stops = np.append(stops, len(labels))
        ends = stops[np.searchsorted(stops, starts, side="right")]
        return list(zip(starts.tolist(), ends.tolist(), kinds[starts].tolist(), strict=True))
