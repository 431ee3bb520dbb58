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
# How often it counts time in which no work ends.
COUNTED_EVERY_S = 0.1


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


SMALLEST = Held(1, 1, 1)


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
        measured = self._tokens  # read once: another thread may set it to 0 meanwhile
        return tokens * self._seconds / measured if measured else 0.0


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
        # Each client's queued work, that of all, and the same with each client's up to its share;
        # numbers in the order of `Held`, counted in place.
        self._held: dict[str, list[int]] = {}
        self._waiting = [0, 0, 0]
        self._counted = [0, 0, 0]

    @property
    def waiting(self) -> Held:
        """The queued work of all clients."""
        return Held(*self._waiting)

    @property
    def waiting_rows(self) -> int:
        """Its rows."""
        return self._waiting[1]

    def check(self, client: str, asked: Held, running_tokens: int) -> None:
        """Raise QueueFull if `asked` does not fit; `running_tokens` have left the queue already."""
        if self._held:
            self._check_amounts(client, asked)
        if self._bounds.wait_s is None:
            return
        before_s = self.rate.seconds(self._waiting[2] + running_tokens)
        if before_s > self._bounds.wait_s:
            raise QueueFull(
                f"a request would now wait about {before_s:.1f} s in the queue; at most "
                f"{self._bounds.wait_s:g} s is allowed",
                headers=self._come_again(),
            )

    def _check_amounts(self, client: str, asked: Held) -> None:
        # Number by number: it is asked three times a request.
        share, bounds = self._share, self._bounds
        requests, rows, tokens = asked
        own = self._held.get(client)
        if own is not None and (
            own[0] + requests > share.requests
            or own[1] + rows > share.rows
            or own[2] + tokens > share.tokens
        ):
            raise self._full(Held(*own), share, "with this API key " if client else "")
        counted = self._counted
        if (
            counted[0] + min(requests, share.requests) > bounds.requests
            or counted[1] + min(rows, share.rows) > bounds.rows
            or counted[2] + min(tokens, share.tokens) > bounds.tokens
        ):
            raise self._full(self.waiting, bounds, "")

    def join(self, client: str, asked: Held) -> None:
        """Count work that has joined the queue."""
        self._count(client, asked, 1)

    def leave(self, client: str, gone: Held) -> None:
        """Subtract work that has left the queue."""
        self._count(client, gone, -1)

    def _count(self, client: str, work: Held, sign: int) -> None:
        held = self._held.setdefault(client, [0, 0, 0])
        for i, (count, most) in enumerate(zip(work, self._share, strict=True)):
            before = held[i]
            now = held[i] = before + sign * count
            self._waiting[i] += sign * count
            self._counted[i] += min(now, most) - min(before, most)
        if not held[0]:
            del self._held[client]

    def clear(self) -> None:
        """Forget all queued work."""
        self._held.clear()
        self._waiting = [0, 0, 0]
        self._counted = [0, 0, 0]

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
