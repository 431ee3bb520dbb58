"""Who may wait: bounds by number, size and time, a share of them a client; when to come again."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from service.errors import QueueFull

RETRY_AFTER_S = 1
# A refused client is not sent away for longer: what is measured now may be over by then.
_MOST_RETRY_AFTER_S = 60
# The rate is that of about so many seconds of work.
_RATE_MEMORY_S = 5.0


@dataclass(frozen=True, slots=True)
class QueueBounds:
    """What may wait, and how much of that for one client."""

    requests: int
    rows: int
    tokens: int
    client_share: float = 1.0
    wait_s: float | None = None  # expected from the measured rate

    def of_client(self) -> "Held":
        """The most that counts of one client."""
        share = self.client_share
        return Held(*(max(1, int(x * share)) for x in (self.requests, self.rows, self.tokens)))


@dataclass(slots=True)
class Held:
    """What waits."""

    requests: int = 0
    rows: int = 0
    tokens: int = 0

    def __add__(self, other: "Held") -> "Held":
        return Held(
            self.requests + other.requests, self.rows + other.rows, self.tokens + other.tokens
        )

    def capped(self, most: "Held") -> "Held":
        """No more than this of each."""
        return Held(
            min(self.requests, most.requests),
            min(self.rows, most.rows),
            min(self.tokens, most.tokens),
        )

    def exceeds(self, most: "Held | QueueBounds") -> bool:
        """Whether it is over in any of them."""
        return self.requests > most.requests or self.rows > most.rows or self.tokens > most.tokens


class Rate:
    """Tokens that a worker gets done in a second of work, as the queue counts them."""

    def __init__(self) -> None:
        self._tokens = self._seconds = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """A step. Old ones fade away."""
        fade = math.exp(-seconds / _RATE_MEMORY_S)
        self._tokens = self._tokens * fade + tokens
        self._seconds = self._seconds * fade + seconds

    def seconds(self, tokens: int) -> float:
        """How long so many tokens take; 0 where nothing is known."""
        return tokens * self._seconds / self._tokens if self._tokens else 0.0


class Admission:
    """What waits, by client, and whether more may. Its caller holds a lock.

    A job over a bound by itself is let in where nothing waits: a limit on one request is the
    engine's to set, and it says so with 422. Of a client's no more counts against others than its
    share.
    """

    def __init__(self, bounds: QueueBounds) -> None:
        self.rate = Rate()
        self._bounds = bounds
        self._held: dict[str, Held] = {}

    @property
    def waiting(self) -> Held:
        """All of it."""
        return _sum(self._held.values())

    def check(self, client: str, asked: Held, running_tokens: int) -> None:
        """Raise QueueFull where so much more does not fit; `running_tokens` wait no longer."""
        most = self._bounds.of_client()
        own = self._held.get(client)
        if own is not None and (own + asked).exceeds(most):
            raise self._full(own, most, "with this API key " if client else "")
        counted = _sum(held.capped(most) for held in self._held.values())
        if self._held and (counted + asked.capped(most)).exceeds(self._bounds):
            raise self._full(self.waiting, self._bounds, "")
        before_s = self.rate.seconds(self.waiting.tokens + running_tokens)
        if self._bounds.wait_s is not None and before_s > self._bounds.wait_s:
            raise QueueFull(
                f"what is asked now would wait for {before_s:.1f} s; {self._bounds.wait_s:g} s is "
                "the longest",
                headers=self._come_again(),
            )

    def join(self, client: str, asked: Held) -> None:
        """It waits now."""
        self._held[client] = self._held.get(client, Held()) + asked

    def leave(self, client: str, gone: Held) -> None:
        """It waits no longer."""
        held = self._held[client]
        held.requests -= gone.requests
        held.rows -= gone.rows
        held.tokens -= gone.tokens
        if not held.requests:
            del self._held[client]

    def clear(self) -> None:
        """Nothing waits."""
        self._held.clear()

    def _full(self, held: Held, most: Held | QueueBounds, whose: str) -> QueueFull:
        return QueueFull(
            f"{held.requests} requests {whose}wait for this model, with {held.rows} rows and "
            f"{held.tokens} tokens; at most {most.requests} requests, {most.rows} rows and "
            f"{most.tokens} tokens {whose}may wait",
            headers=self._come_again(),
        )

    def _come_again(self) -> dict[str, str]:
        """When what waits now will have been begun."""
        wait_s = math.ceil(self.rate.seconds(self.waiting.tokens))
        return {"Retry-After": str(min(max(RETRY_AFTER_S, wait_s), _MOST_RETRY_AFTER_S))}


def _sum(each: Iterable[Held]) -> Held:
    return sum(each, Held())
