"""The places for connections: a maximum, spare ones for health checks, and who gives way.

Above the maximum, a connection uses a spare place, on which only health checks are answered.
"""

import asyncio
from collections.abc import Callable

from service.errors import ServiceError, TooManyConnections
from service.http.unsent import Outlet

# Connections above the maximum.
_SPARE_PLACES = 16


class Place:
    """One connection's place."""

    def __init__(
        self,
        outlet: Outlet,
        *,
        close_idle: Callable[[], None],
        refuse: Callable[[ServiceError], None],
    ) -> None:
        self.outlet = outlet
        self.close_idle = close_idle
        self.refuse = refuse
        self.idle_since: float | None = None  # time.perf_counter() at its last answer
        self.spare_since: float | None = None  # since when it is a spare place
        self.still_since: float | None = None  # since when its stream has been idle
        self.give_way: asyncio.Future[None] | None = None  # set it to end that stream

    @property
    def is_spare(self) -> bool:
        """Whether only health checks are answered here."""
        return self.spare_since is not None

    @property
    def is_leaving(self) -> bool:
        """Whether it is closing, or its stream has been asked to end."""
        return self.outlet.is_closing() or (self.give_way is not None and self.give_way.done())

    def stand_still(self, give_way: "asyncio.Future[None] | None") -> None:
        """Note that the stream waits for its client with no work open; None: it continues.

        The stream must end once `give_way` is done.
        """
        if self.give_way is None or not self.give_way.done():
            self.give_way = give_way
        now = asyncio.get_running_loop().time()
        self.still_since = None if give_way is None else now


class Places:
    """All places of a process."""

    def __init__(self, max_connections: int, stream_yield_s: float) -> None:
        self._max = max_connections
        self._stream_yield_s = stream_yield_s
        self._held: set[Place] = set()

    def take(self, place: Place) -> None:
        """Take a place for a new connection, a spare one if there is no other."""
        self._held.add(place)
        if not self.fits(place):
            place.spare_since = asyncio.get_running_loop().time()
            self._bound_spare(place)

    def leave(self, place: Place) -> None:
        """Give the place back."""
        self._held.discard(place)

    def fits(self, place: Place) -> bool:
        """Whether there is a place for this connection; closes an idle one if that makes room."""
        if len(self._held) <= self._max:
            return True
        others = [x for x in self._held if x is not place]
        held = [x for x in others if x.spare_since is None and not x.is_leaving]
        return len(held) < self._max or self._make_room(held)

    def _make_room(self, held: list[Place]) -> bool:
        """Close the connection that has been idle longest; false if none is idle.

        Connections idle between requests go first, then streams that wait for their client.
        """
        idle = [x for x in held if x.idle_since is not None]
        if idle:
            min(idle, key=lambda x: x.idle_since or 0.0).close_idle()
            return True
        longest = min(held, key=lambda x: x.still_since or float("inf"))
        now = asyncio.get_running_loop().time()
        still_s = now - (longest.still_since or float("inf"))
        if longest.give_way is None or still_s < self._stream_yield_s:
            return False
        longest.give_way.set_result(None)
        longest.stand_still(None)
        return True

    def _bound_spare(self, place: Place) -> None:
        """Limit the spare places, too: the connection that has used one longest goes."""
        if len(self._held) <= self._max + _SPARE_PLACES:
            return
        others = [x for x in self._held if x is not place]
        leaving = [x for x in others if x.outlet.is_lingering]
        if leaving:
            min(leaving, key=lambda x: x.outlet.closing_since or 0.0).outlet.end_lingering()
            return
        spare = [x for x in others if x.spare_since is not None and not x.is_leaving]
        if spare:
            min(spare, key=lambda x: x.spare_since or 0.0).refuse(self.too_many())

    def too_many(self) -> ServiceError:
        """The error for a connection without a place."""
        return TooManyConnections(
            f"this server accepts at most {self._max} connections", headers={"Retry-After": "1"}
        )
