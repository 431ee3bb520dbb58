"""Texts as a labeler reads them: texts of one padded length are rows that are read together.

N texts, S places of a text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from service.bundle.arrays import Ids, Int64Array
from service.bundle.padding import padded_length
from service.bundle.text import BOS_ID, EOS_ID, PAD_ID
from service.runtime.language_model import States
from service.scheduling.labeler import MAX_RUN_SUMS, READ_CHUNK, LabelWork, PlaceListener

# Places in one piece of work: few enough that a request can be divided among the workers.
_MAX_PLACES = 1024


@dataclass(frozen=True, slots=True)
class Grouped:
    """Some texts of a request as a piece of work."""

    texts: Int64Array  # [N] their indices in the request
    work: LabelWork


def grouped(
    texts: Sequence[Ids],
    *,
    reads_forward: bool,
    start: States | None = None,
    listeners: Sequence[PlaceListener] = (),
    place_sums: int = 0,
) -> list[Grouped]:
    """The work for some texts, given as ids; all of them continue from `start` ([1, …] each).

    Empty texts that continue from a state need no work. Listeners take `place_sums` additions for
    each place.
    """
    begins, ends = start is None, not reads_forward
    framed = np.array([len(ids) for ids in texts], np.int32) + (int(begins) + int(ends))
    by_length: dict[int, list[int]] = {}
    lengths_of = framed.tolist()
    for i, length in enumerate(lengths_of):
        if length:
            by_length.setdefault(padded_length(length), []).append(i)
    found = []
    for places, members in by_length.items():
        # Texts that are read in chunks are read one by one.
        is_alone = reads_forward and places > READ_CHUNK
        sums = places * place_sums
        most = min(_MAX_PLACES // places, MAX_RUN_SUMS // max(1, sums))
        size = 1 if is_alone else max(1, most)
        # Texts of like lengths beside each other: they are read over few pads then.
        members.sort(key=lengths_of.__getitem__)
        for first in range(0, len(members), size):
            chosen = np.array(members[first : first + size])
            lengths = framed[chosen]
            tokens = np.full((len(chosen), places), PAD_ID, np.uint16)
            columns = np.arange(places) - int(begins)  # where the ids stand
            inside = (columns >= 0) & (columns < (lengths - int(begins) - int(ends))[:, None])
            tokens[inside] = np.concatenate([texts[i] for i in chosen.tolist()])
            if begins:
                tokens[:, 0] = BOS_ID
            if ends:
                tokens[np.arange(len(chosen)), lengths - 1] = EOS_ID
            states = None
            if start is not None:
                states = tuple(np.repeat(state, len(chosen), axis=0) for state in start)
            told = [listeners[i] for i in chosen.tolist()] if listeners else ()
            found.append(
                Grouped(chosen, LabelWork(tokens, lengths, states, told, sums * len(chosen)))
            )
    return found
