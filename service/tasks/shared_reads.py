"""Reads the common prefixes of a request's inputs once, before the inputs themselves."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from service.decoding.cache_budget import CacheBudget
from service.decoding.prefixes import MIN_SHARED_TOKENS, PrefixCache, shared_prefixes
from service.decoding.rows import ReadRow
from service.observe.metrics import EngineMetrics
from service.runtime.threads import off_loop
from service.scheduling.language_model import TextWork

Run: TypeAlias = Callable[[Sequence[TextWork]], Awaitable[None]]


class SharedReads:
    """Runs texts so that shared and cached prefixes are not read again.

    All its texts adapt, or none does, since the states after a prefix then differ.
    """

    def __init__(
        self, budget: CacheBudget, metrics: EngineMetrics, *, most_shared: int | None = None
    ) -> None:
        """`budget` limits the memory of the prefixes kept, of all caches that share it.

        A request holds up to `most_shared` prefixes while it runs.
        """
        self.prefixes = PrefixCache(budget)
        self._metrics = metrics
        self._most_shared = most_shared

    async def run(self, works: Sequence[TextWork], run: Run) -> list[int]:
        """Run all work; for each, the number of tokens from a shared or cached prefix."""
        size = sum(len(work.read.tokens) for work in works)
        levels = await off_loop(size, lambda: self._plan_prefixes(works))
        ran = [0] * len(works)  # tokens of prefixes, run for one of those that begin with them
        for level in levels:
            for prefix in level:
                ran[prefix.members[0]] += prefix.work.read.remaining
            await run([x.work for x in level if x.work.read.remaining])
            for prefix in level:
                prefix.hand_on()
                self._remember(prefix.work.read)
        reused = [work.read.position - tokens for work, tokens in zip(works, ran, strict=True)]
        for work in works:
            if work.adapt and _is_whole(work.read):
                # At once: or the large states of all prompts would be held until the last choice.
                work.read.remember = self.prefixes.put
        await run(works)
        for work in works:
            self._remember(work.read)
        return reused

    def _plan_prefixes(self, works: Sequence[TextWork]) -> "list[list[_Prefix]]":
        """The shared prefixes to read first, level by level; cached prefixes are used already."""
        rows = [work.read for work in works]
        if len(rows) == 1 and not _has_context(rows[0]):
            self._recall(rows[0])  # there is nothing to share
            return []
        # A long context becomes a prefix of its own, so that the next request finds it.
        contexts = [row for row in rows if _has_context(row)]
        sequences = [_pairs(row, max(0, len(row.tokens) - 1)) for row in rows]
        sequences += [_pairs(row, row.uncounted) for row in contexts]
        prefixes: list[_Prefix] = []
        levels: list[list[_Prefix]] = []
        # Parents come first.
        for shared in shared_prefixes(sequences)[: self._most_shared]:
            members = tuple(i for i in shared.members if i < len(rows))
            row = rows[members[0]]
            read = ReadRow(
                row.tokens[: shared.length],
                row.targets[: shared.length],
                detail_top=row.detail_top,
                wants_continuation=True,
                # One for all rows of a request.
                after=row.after,
                first=row.first,
            )
            prefix = _Prefix(TextWork(read, adapt=works[members[0]].adapt), members, [])
            prefixes.append(prefix)
            if shared.parent is not None:
                prefixes[shared.parent].followers.append(read)
            levels += [[] for _ in range(shared.level + 1 - len(levels))]
            levels[shared.level].append(prefix)
        inside: dict[int, _Prefix] = {}
        for prefix in prefixes:  # parents first: the last one is the longest
            inside.update(dict.fromkeys(prefix.members, prefix))
        for i, prefix in inside.items():
            prefix.followers.append(rows[i])
        for row in [*(prefix.work.read for prefix in prefixes), *rows]:
            self._recall(row)
        return levels

    def _recall(self, row: ReadRow) -> None:
        """Start a row after the longest cached prefix of its uncounted tokens."""
        if row.after is not None:
            # The cache has only prefixes that begin with a document.
            return
        known = self.prefixes.longest(row.tokens, row.uncounted)
        self._metrics.looked_up(hit=known is not None)
        if known is None:
            return
        length, continuation = known
        row.resume(length, continuation.states)
        if length == len(row.tokens):
            row.continuation = continuation

    def _remember(self, row: ReadRow) -> None:
        """Cache the continuation of a text without counted tokens."""
        if _is_whole(row) and row.continuation is not None:
            self.prefixes.put(row.tokens, row.continuation)


@dataclass(frozen=True, slots=True)
class _Prefix:
    """A prefix of several rows, read once for all of them."""

    work: TextWork
    members: tuple[int, ...]  # the inputs that begin with it
    followers: list[ReadRow]  # longer prefixes and inputs that start where it ends

    def hand_on(self) -> None:
        """Let the followers start where this ends, except those that start later already."""
        read = self.work.read
        if read.continuation is None:
            raise RuntimeError("read the prefix first")
        for row in self.followers:
            if row.position < len(read.tokens):
                row.resume(len(read.tokens), read.continuation.states)
                row.logprob = read.logprob
                row.details = list(read.details)


def _has_context(row: ReadRow) -> bool:
    """Whether it counts nothing at first, long enough to be read as a prefix of its own."""
    return MIN_SHARED_TOKENS <= row.uncounted < len(row.tokens)


def _is_whole(row: ReadRow) -> bool:
    """Whether it reads a document from its beginning and counts nothing."""
    return row.after is None and row.uncounted == len(row.tokens)


def _pairs(row: ReadRow, length: int) -> npt.NDArray[np.uint32]:
    """What a row reads and what it counts there: equal where two rows can be read as one."""
    tokens, targets = row.tokens[:length], row.targets[:length]
    return tokens.astype(np.uint32) << np.uint32(16) | targets
