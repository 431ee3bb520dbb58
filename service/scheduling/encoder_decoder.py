"""The runner of encoder-decoders: encode admitted sources in batches, then search step by step."""

import logging
import time
from collections.abc import Sequence

import numpy as np

from service.bundle.padding import padded_length
from service.decoding.search import Search
from service.decoding.search_batch import SearchBatch
from service.errors import ServiceError
from service.runtime.encoder_decoder import EncoderDecoderSession
from service.runtime.runs import pad_sources
from service.scheduling.failures import run_failed

# Source positions in one run of the encoder: limits the memory that the graph uses.
_MAX_POSITIONS = 4096
# New sources wait while they are fewer than this share of those being searched, for at most this
# many steps: encoding one source costs half as much as encoding four together.
_FEW = 1 / 4
_MOST_STEPS = 4

logger = logging.getLogger(__name__)

Ended = list[tuple[Search, ServiceError | None]]


class EncoderDecoderRunner:
    """Encodes sources of one padded length together, then searches those of one width together."""

    def __init__(self, session: EncoderDecoderSession, *, name: str) -> None:
        self._session = session
        self._name = name
        self._waiting: list[Search] = []  # to be encoded
        self._waited = 0  # steps since the first of them came
        self._batches: dict[tuple[int, int], SearchBatch] = {}  # by padded length and width
        self._used_rows = 0

    @property
    def used_rows(self) -> int:
        """Rows that the admitted work holds now."""
        return self._used_rows

    @property
    def free(self) -> bool:
        """Whether it holds nothing."""
        return not (self._waiting or self._batches or self._used_rows)

    def admit(self, work: Sequence[Search]) -> None:
        """Take sources in: they are encoded before the next step, or a little later with others."""
        self._waiting += work
        self._used_rows += sum(search.width for search in work)

    def run(self) -> Ended:
        """Encode the waiting sources if it is time, then run one step of every batch.

        The work that it returns has left its batch.
        """
        ended = self._read() if self._reads_now() else []
        for batch in self._batches.values():
            try:
                done, failed = batch.run()
            except Exception:  # whatever the runtime raises fails the rows of this batch only
                logger.exception("engine %s: a model run raised", self._name)
                failed = [(search, run_failed()) for search in batch.searches]
                batch.remove(list(batch.searches))
                done = []
            ended += [(search, None) for search in done]
            ended += failed
        self._forget_empty()
        self._used_rows -= sum(search.width for search, _ in ended)
        return ended

    def drop(self, work: Sequence[Search]) -> None:
        """Remove sources, encoded or not."""
        ids = {id(search) for search in work}
        held = [*self._waiting, *(x for batch in self._batches.values() for x in batch.searches)]
        self._used_rows -= sum(search.width for search in held if id(search) in ids)
        self._waiting = [search for search in self._waiting if id(search) not in ids]
        for batch in self._batches.values():
            batch.remove(work)
        self._forget_empty()

    def clear(self) -> None:
        """Drop all work: the worker has ended."""
        self._waiting.clear()
        self._batches.clear()
        self._used_rows = 0

    def _reads_now(self) -> bool:
        """Whether to encode the waiting sources before this step."""
        if not self._waiting:
            self._waited = 0
            return False
        self._waited += 1
        searching = sum(len(batch.searches) for batch in self._batches.values())
        return len(self._waiting) >= _FEW * searching or self._waited > _MOST_STEPS

    def _read(self) -> Ended:
        """Encode the waiting sources, those of one padded length together."""
        ended: Ended = []
        by_length: dict[int, list[Search]] = {}
        for search in self._waiting:
            by_length.setdefault(padded_length(len(search.source)), []).append(search)
        self._waiting, self._waited = [], 0
        for length, searches in by_length.items():
            size = max(1, _MAX_POSITIONS // length)
            for start in range(0, len(searches), size):
                ended += self._read_some(length, searches[start : start + size])
        return ended

    def _read_some(self, length: int, searches: list[Search]) -> Ended:
        # Sorted by width, since each width goes to its own search batch.
        searches.sort(key=lambda search: search.width)
        lengths = np.array([len(search.source) for search in searches], np.int32)
        try:
            encoded = self._session.encode(pad_sources([x.source for x in searches]), lengths)
        except Exception:  # as in `run`
            logger.exception("engine %s: a model run raised", self._name)
            return [(search, run_failed()) for search in searches]
        now = time.monotonic()
        for search in searches:
            search.began = now
        widths = np.array([search.width for search in searches])
        for width in dict.fromkeys(widths.tolist()):
            chosen = slice(*np.searchsorted(widths, [width, width + 1]).tolist())
            batch = self._batches.get((length, width))
            if batch is None:
                batch = self._batches[length, width] = SearchBatch(self._session, width)
            batch.add(searches[chosen], encoded.some(chosen))
        return []

    def _forget_empty(self) -> None:
        self._batches = {key: x for key, x in self._batches.items() if x.searches}
