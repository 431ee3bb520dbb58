"""The uncertainty of a figure on held-out text, from its spread over pieces of the text.

U units: the documents, or stretches of few long ones.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.bundle.text import BOS_ID, EOS_ID
from training.data.corpus import Split

# Fewer documents are cut into stretches, since the spread of a few says little.
_FEW_DOCUMENTS = 30
_STRETCHES = 100
# The least for a stretch, so that what neighbours share counts for little.
_STRETCH_TOKENS = 200

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Units:
    """The units of a split."""

    bounds: npt.NDArray[np.int64]  # [U + 1] offsets into the split's ids
    chars: npt.NDArray[np.int64]  # [U]

    def __len__(self) -> int:
        return len(self.chars)

    def totals(self, places: npt.NDArray[np.int64], values: Floats) -> Floats:
        """[U] sums of the values of tokens at these offsets."""
        unit = np.searchsorted(self.bounds, places, side="right") - 1
        return np.bincount(unit, values, minlength=len(self)).astype(np.float64)

    def standard_error(self, nats: Floats) -> float | None:
        """That of the bits a character of [U] nats; None with too few units.

        The standard error of a ratio of sums (Cochran, Sampling Techniques, 1977, section 2.11):
        the nats and the characters of a unit are drawn together. The nats may be differences.
        """
        if len(self) < 2:
            return None
        chars = self.chars.sum()
        off = nats - nats.sum() / chars * self.chars
        variance = len(self) / (len(self) - 1) * float((off**2).sum())
        return math.sqrt(variance) / (float(chars) * math.log(2))


def units_of(split: Split) -> Units:
    """The documents or, where there are few, stretches of equal length."""
    if split.documents >= _FEW_DOCUMENTS:
        bounds = np.asarray(split.starts, np.int64)
        return Units(bounds, np.diff(bounds) - 2)
    count = max(1, min(_STRETCHES, len(split.ids) // _STRETCH_TOKENS))
    bounds = np.linspace(0, len(split.ids), count + 1).astype(np.int64)
    stretches = (split.ids[start:end] for start, end in itertools.pairwise(bounds))
    chars = [int(((ids != BOS_ID) & (ids != EOS_ID)).sum()) for ids in stretches]
    return Units(bounds, np.array(chars, np.int64))
