"""Admission control: how much work may queue, and the 429 with Retry-After for what may not.

The queue is limited by requests, rows, tokens and expected waiting time. Each client may use a
share of these limits.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from service.errors import QueueFull

RETRY_AFTER_S = 1
# The longest Retry-After: the load measured now says little about a later time.
_MOST_RETRY_AFTER_S = 60
# The rate averages over about this many seconds of work.
_RATE_MEMORY_S = 5.0


@dataclass(frozen=True, slots=True)
class QueueBounds:
    """Limits on the queue of one model, and the share of them that one client may use."""

    requests: int
    rows: int
    tokens: int
    client_share: float = 1.0
    wait_s: float | None = None  # longest expected wait, estimated from the measured rate

    def of_client(self) -> "Held":
        """The share of the limits that one client may use."""
        share = self.client_share
        return Held(*(max(1, int(x * share)) for x in (self.requests, self.rows, self.tokens)))


class Held(NamedTuple):
    """An amount of queued work."""

    requests: int = 0
    rows: int = 0
    tokens: int = 0

    def __add__(self, other: "Held") -> "Held":  # type: ignore[override]
        return Held(
            self.requests + other.requests, self.rows + other.rows, self.tokens + other.tokens
        )

    def __sub__(self, other: "Held") -> "Held":
        return Held(
            self.requests - other.requests, self.rows - other.rows, self.tokens - other.tokens
        )

    def capped(self, most: "Held") -> "Held":
        """The amount, with each of the three numbers limited to `most`."""
        return Held(
            min(self.requests, most.requests),
            min(self.rows, most.rows),
            min(self.tokens, most.tokens),
        )

    def exceeds(self, most: "Held | QueueBounds") -> bool:
        """Whether any of the three numbers is over its limit."""
        return self.requests > most.requests or self.rows > most.rows or self.tokens > most.tokens


_NOTHING = Held()


class Rate:
    """Throughput of a worker in queued tokens a second, averaged over its recent steps."""

    def __init__(self) -> None:
        self._tokens = self._seconds = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """Count one step. The weight of older steps decays."""
        fade = math.exp(-seconds / _RATE_MEMORY_S)
        self._tokens = self._tokens * fade + tokens
        self._seconds = self._seconds * fade + seconds

    def seconds(self, tokens: int) -> float:
        """How long this many tokens take; 0 before anything has been measured."""
        return tokens * self._seconds / self._tokens if self._tokens else 0.0


class Admission:
    """Queued work by client, and the decision whether more may join. The caller holds a lock.

    A job that exceeds a limit by itself is admitted to an empty queue: the size of one request is
    limited by the engine, which answers 422. Against other clients, a client's work counts up to
    its share and no further.
    """

    def __init__(self, bounds: QueueBounds) -> None:
        self.rate = Rate()
        self._bounds = bounds
        self._share = bounds.of_client()
        self._held: dict[str, Held] = {}
        self._waiting = Held()
        self._counted = Held()  # the same, each client's work up to its share

    @property
    def waiting(self) -> Held:
        """The queued work of all clients."""
        return self._waiting

    def check(self, client: str, asked: Held, running_tokens: int) -> None:
        """Raise QueueFull if `asked` does not fit; `running_tokens` have left the queue already."""
        if self._held:
            share = self._share
            own = self._held.get(client)
            if own is not None and (own + asked).exceeds(share):
                raise self._full(own, share, "with this API key " if client else "")
            if (self._counted + asked.capped(share)).exceeds(self._bounds):
                raise self._full(self._waiting, self._bounds, "")
        before_s = self.rate.seconds(self._waiting.tokens + running_tokens)
        if self._bounds.wait_s is not None and before_s > self._bounds.wait_s:
            raise QueueFull(
                f"a request would now wait about {before_s:.1f} s in the queue; at most "
                f"{self._bounds.wait_s:g} s is allowed",
                headers=self._come_again(),
            )

    def join(self, client: str, asked: Held) -> None:
        """Count work that has joined the queue."""
        self._hold(client, self._held.get(client, _NOTHING) + asked)

    def leave(self, client: str, gone: Held) -> None:
        """Subtract work that has left the queue."""
        self._hold(client, self._held[client] - gone)

    def _hold(self, client: str, now: Held) -> None:
        before = self._held.get(client, _NOTHING)
        if now.requests:
            self._held[client] = now
        else:
            del self._held[client]
        self._waiting += now - before
        self._counted += now.capped(self._share) - before.capped(self._share)

    def clear(self) -> None:
        """Forget all queued work."""
        self._held.clear()
        self._waiting = self._counted = _NOTHING

    def _full(self, held: Held, most: Held | QueueBounds, whose: str) -> QueueFull:
        return QueueFull(
            f"{held.requests} requests {whose}wait for this model, with {held.rows} rows and "
            f"{held.tokens} tokens; at most {most.requests} requests, {most.rows} rows and "
            f"{most.tokens} tokens {whose}may wait",
            headers=self._come_again(),
        )

    def _come_again(self) -> dict[str, str]:
        """Retry-After: the seconds until the current queue has been worked off."""
        wait_s = math.ceil(self.rate.seconds(self.waiting.tokens))
        return {"Retry-After": str(min(max(RETRY_AFTER_S, wait_s), _MOST_RETRY_AFTER_S))}
