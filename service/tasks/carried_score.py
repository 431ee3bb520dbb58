"""The score of a text that arrives in parts: bitwise the same, however the text is cut."""

from dataclasses import dataclass, replace

import numpy as np

from service.bundle.arrays import Ids
from service.bundle.text import BOS_ID, EOS_ID, UNK_ID
from service.decoding.rows import ReadRow
from service.errors import InvalidRequest
from service.runtime.language_model import States
from service.tasks.values import Figures, ScoreOptions


@dataclass(frozen=True, slots=True)
class CarriedScore(Figures):
    """The score of a text so far, and what it takes to continue."""

    states: States | None = None  # None: nothing has been read
    last: int | None = None  # the last token, which has not been read yet
    logprob: float = 0.0  # nats
    chars: int = 0  # counted
    read: int = 0  # characters received, counted or not
    unknown: int = 0  # those of them outside the vocabulary
    bos: bool = True  # whether it begins a document
    eos: bool = False

    def with_part(
        self, ids: Ids | None, options: ScoreOptions
    ) -> "tuple[CarriedScore, ReadRow | None]":
        """The score before the next part is read, and the row to read, or None.

        `ids` is None at the end of the text. Raises InvalidRequest.
        """
        coming = np.array([EOS_ID], np.uint16) if ids is None else ids
        unknown = int(np.count_nonzero(coming == UNK_ID))
        if options.unknown == "error" and unknown:
            raise InvalidRequest(
                f"{unknown} characters are not in the model's vocabulary, among the {len(coming)} "
                f"after the first {self.read}"
            )
        last = BOS_ID if not self.read and self.bos else self.last
        read = self.read + (0 if ids is None else len(ids))
        carried = replace(self, read=read, unknown=self.unknown + unknown)
        if options.unknown == "skip":
            coming = coming[coming != UNK_ID]
        sequence = coming if last is None else np.append(np.uint16(last), coming)
        if len(sequence) < 2:
            # Nothing is counted yet: the first token is only context for the next.
            return replace(carried, last=int(sequence[0]) if len(sequence) else None), None
        row = ReadRow(sequence[:-1], sequence[1:], start=self.states, wants_continuation=True)
        row.logprob = self.logprob
        return carried, row

    def after(self, row: ReadRow, *, is_end: bool) -> "CarriedScore":
        """The score once the row has been read."""
        return replace(
            self,
            states=None if row.continuation is None else row.continuation.states,
            last=int(row.targets[-1]),
            logprob=row.logprob,
            chars=self.chars + (0 if is_end else len(row.tokens)),
            eos=is_end,
        )
