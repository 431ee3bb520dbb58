"""The prefix cache: a trie of prefixes that are read once, for all inputs and later requests.

T tokens, V vocabulary. Reading a prefix gives a continuation of a few kilobytes, whatever its
length. It is bitwise the same whichever request read it, so neither sharing nor the cache changes
any result.
"""

import bisect
import hashlib
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from service.bundle.arrays import Ids
from service.decoding.cache_budget import Cache, CacheBudget
from service.decoding.rows import Continuation

# Shorter prefixes are read again: a model run for them alone would cost more than it saves.
MIN_SHARED_TOKENS = 16
# Prefixes of prefixes; each level is one more run before the inputs themselves.
MAX_LEVELS = 8
_DIGEST_BYTES = 16
_SHORT_TOKENS = 64
_ENTRY_OVERHEAD_BYTES = 256

_Key: TypeAlias = tuple[int, bytes]  # how many tokens, and what tells them apart


class PrefixCache:
    """Maps the tokens of a prefix to its continuation; the least recently used go first.

    Bounded by the bytes of the continuations, in a budget that it shares with other models' caches.
    Safe to use from several threads.
    """

    def __init__(self, budget: CacheBudget) -> None:
        self._kept: Cache[_Key, Continuation] = Cache(budget, self._on_kept, self._on_forgotten)
        self._lock = (
            threading.Lock()
        )  # guards the lengths; taken after the budget's lock if both are held
        self._lengths: list[int] = []  # lengths of the cached prefixes, ascending, each once
        self._count_of_length: Counter[int] = Counter()

    def __len__(self) -> int:
        return self._count_of_length.total()

    @property
    def size_bytes(self) -> int:
        """The memory of the cached prefixes."""
        return self._kept.size_bytes

    def longest(self, tokens: Ids, at_most: int) -> tuple[int, Continuation] | None:
        """The longest cached prefix of `tokens` up to a length, and its continuation; or None."""
        with self._lock:
            lengths = self._lengths[: bisect.bisect_right(self._lengths, at_most)]
        if not lengths:
            return None
        for key in reversed(list(_keys(tokens, lengths))):
            continuation = self._kept.get(key)
            if continuation is not None:
                return key[0], continuation
        return None

    def put(self, tokens: Ids, continuation: Continuation) -> None:
        """Cache the continuation of a prefix."""
        (key,) = _keys(tokens, [len(tokens)])
        self._kept.put(key, continuation, _size_bytes(continuation))

    def close(self) -> None:
        """Empty the cache and keep nothing more: the model has ended."""
        self._kept.close()

    def _on_kept(self, key: _Key) -> None:
        length, _ = key
        with self._lock:
            self._count_of_length[length] += 1
            if self._count_of_length[length] == 1:
                bisect.insort(self._lengths, length)

    def _on_forgotten(self, key: _Key) -> None:
        length, _ = key
        with self._lock:
            self._count_of_length[length] -= 1
            if not self._count_of_length[length]:
                del self._count_of_length[length]
                self._lengths.remove(length)


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """The first `length` positions of every member; `parent` is a shorter prefix of the same."""

    length: int
    members: tuple[int, ...]  # indices of sequences
    parent: int | None  # index of a shared prefix
    level: int  # 0 without a parent


def shared_prefixes(sequences: Sequence[npt.NDArray[np.uint32]]) -> list[SharedPrefix]:
    """The prefixes that at least two of the sequences share, parents first.

    A prefix is shared where it is at least MIN_SHARED_TOKENS longer than its parent. This is the
    compressed prefix tree of the sequences without its short edges.
    """
    if len(sequences) < 2:
        return []
    raw = [sequence.tobytes() for sequence in sequences]
    # Sequences that begin alike are neighbours in the order of their bytes.
    order = sorted(range(len(sequences)), key=raw.__getitem__)
    common = [0] * len(order)
    for i in range(1, len(order)):
        common[i] = _common_length(sequences[order[i - 1]], sequences[order[i]])
    found: list[SharedPrefix] = []
    pending: list[tuple[int, int, int | None]] = [(0, len(order), None)]
    while pending:
        begin, end, parent = pending.pop()
        depth = 0 if parent is None else found[parent].length
        level = 0 if parent is None else found[parent].level + 1
        if level == MAX_LEVELS:
            continue
        for first, after in _runs(common, begin, end, depth + MIN_SHARED_TOKENS):
            length = min(common[first + 1 : after])
            members = tuple(order[first:after])
            found.append(SharedPrefix(length, members, parent, level))
            pending.append((first, after, len(found) - 1))
    return found


def _runs(common: Sequence[int], begin: int, end: int, at_least: int) -> Iterator[tuple[int, int]]:
    """Neighbours, two or more, that each share that many positions with the one before."""
    first = begin
    for i in range(begin + 1, end + 1):
        if i == end or common[i] < at_least:
            if i - first > 1:
                yield first, i
            first = i


def _common_length(one: npt.NDArray[np.uint32], other: npt.NDArray[np.uint32]) -> int:
    shorter = min(len(one), len(other))
    different = one[:shorter] != other[:shorter]
    first = int(different.argmax()) if shorter else 0
    return first if shorter and different[first] else shorter


def _keys(tokens: Ids, lengths: Sequence[int]) -> Iterator[_Key]:
    """The keys of prefixes of these ascending lengths.

    That is a short prefix itself; of a longer one, its BLAKE2b, which no two texts share.
    """
    raw = tokens.tobytes()
    size = tokens.itemsize
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    read = 0
    for length in lengths:
        if length <= _SHORT_TOKENS:
            yield length, raw[: length * size]
            continue
        digest.update(raw[read * size : length * size])
        read = length
        yield length, digest.copy().digest()


def _size_bytes(continuation: Continuation) -> int:
    states = sum(state.nbytes for state in continuation.states)
    return states + continuation.logprobs.nbytes + _ENTRY_OVERHEAD_BYTES
