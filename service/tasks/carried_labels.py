"""The labels of a text that arrives in parts: bitwise the same, however the text is cut.

L labels.
"""

from dataclasses import dataclass, replace

import numpy as np

from service.bundle.arrays import Float32Array, Ids
from service.bundle.text import UNK_ID
from service.errors import InvalidRequest
from service.runtime.language_model import States
from service.scheduling.labeler import LabelWork
from service.tasks.label_works import grouped
from service.tasks.unknown import UnknownPolicy


@dataclass(frozen=True, slots=True)
class CarriedLabels:
    """The labels of a text so far, and what it takes to continue."""

    states: States | None = None  # None: nothing has been read, not even bos
    logprobs: Float32Array | None = None  # [L]
    read: int = 0  # characters received, skipped ones too
    unknown: int = 0  # those of them outside the vocabulary

    def with_part(
        self, ids: Ids, policy: UnknownPolicy
    ) -> "tuple[CarriedLabels, LabelWork | None]":
        """The labels before the next part is read, and the row to read, or None.

        Raises InvalidRequest.
        """
        unknown = int(np.count_nonzero(ids == UNK_ID))
        if policy == "error" and unknown:
            raise InvalidRequest(
                f"{unknown} characters are not in the model's vocabulary, among the {len(ids)} "
                f"after the first {self.read}"
            )
        carried = replace(self, read=self.read + len(ids), unknown=self.unknown + unknown)
        if policy == "skip":
            ids = ids[ids != UNK_ID]
        groups = grouped([ids], reads_forward=True, start=self.states)
        return carried, groups[0].work if groups else None

    def after(self, work: LabelWork) -> "CarriedLabels":
        """The labels once the row has been read."""
        logprobs = None if work.logprobs is None else work.logprobs[0]
        return replace(self, states=work.states, logprobs=logprobs)
