"""One limit on the memory of several caches, such as those of all models of a process."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from service.settings import Settings

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class CacheBudget:
    """So many bytes, which caches draw from; the least recently used entry of any goes first.

    Safe to use from several threads, as its caches are.
    """

    def __init__(self, max_bytes: int) -> None:
        """With 0 bytes, nothing is kept."""
        self.max_bytes = max_bytes
        self.size_bytes = 0
        self._lock = threading.Lock()
        self._entries: OrderedDict[tuple[Cache[Any, Any], Hashable], tuple[Any, int]] = (
            OrderedDict()
        )

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, cache: "Cache[Key, Value]", key: Key) -> Value | None:
        """A cache's entry, or None; the entry now counts as just used."""
        with self._lock:
            if (cache, key) not in self._entries:
                return None
            self._entries.move_to_end((cache, key))
            value: Value = self._entries[cache, key][0]
            return value

    def put(self, cache: "Cache[Key, Value]", key: Key, value: Value, size_bytes: int) -> None:
        """Add an entry, and forget others until it fits; one larger than the budget is not kept."""
        with self._lock:
            if size_bytes > self.max_bytes or cache.is_closed:
                return
            if (cache, key) in self._entries:
                self._entries.move_to_end((cache, key))
                return
            while self.size_bytes + size_bytes > self.max_bytes:
                self._forget(next(iter(self._entries)))
            self._entries[cache, key] = (value, size_bytes)
            self.size_bytes += size_bytes
            cache.size_bytes += size_bytes
            cache.on_kept(key)

    def close(self, cache: "Cache[Any, Any]") -> None:
        """Evict everything of a cache for good."""
        with self._lock:
            cache.is_closed = True
            for entry in [x for x in self._entries if x[0] is cache]:
                self._forget(entry)

    def _forget(self, entry: "tuple[Cache[Any, Any], Hashable]") -> None:
        cache, key = entry
        _, size_bytes = self._entries.pop(entry)
        self.size_bytes -= size_bytes
        cache.size_bytes -= size_bytes
        cache.on_forgotten(key)


class Cache(Generic[Key, Value]):
    """One owner's entries in a budget; the owner closes it."""

    def __init__(
        self,
        budget: CacheBudget,
        on_kept: Callable[[Key], None] = lambda _: None,
        on_forgotten: Callable[[Key], None] = lambda _: None,
    ) -> None:
        """The callbacks run under the budget's lock: they must be short and not use the budget."""
        self._budget = budget
        self.on_kept = on_kept
        self.on_forgotten = on_forgotten
        self.size_bytes = 0
        self.is_closed = False

    def get(self, key: Key) -> Value | None:
        """The entry, or None; it now counts as just used."""
        return self._budget.get(self, key)

    def put(self, key: Key, value: Value, size_bytes: int) -> None:
        """Add an entry, unless there is one; it stays until the budget needs its room."""
        self._budget.put(self, key, value, size_bytes)

    def close(self) -> None:
        """Forget everything and accept nothing more: the owner has ended."""
        self._budget.close(self)


@dataclass(frozen=True, slots=True)
class CacheBudgets:
    """The budgets that all models of a process share."""

    prefixes: CacheBudget
    patterns: CacheBudget

    @classmethod
    def of(cls, settings: Settings) -> "CacheBudgets":
        """The budgets in the settings."""
        return cls(
            CacheBudget(settings.prefix_cache_bytes), CacheBudget(settings.pattern_cache_bytes)
        )
