"""Checks against a limit; the error names the option."""

from collections.abc import Sequence

from service.errors import InvalidRequest, QueueFull
from service.observe.request_context import current_request
from service.scheduling.admission import RETRY_AFTER_S
from service.settings import Settings

# All requests together may hold this many times the details of the largest one. As arrays, a
# detail takes 12 bytes.
DETAILS_IN_HAND = 4


def at_most(option: str, value: int, limit: int, unit: str) -> None:
    """Raise InvalidRequest where a value is over its limit."""
    if value > limit:
        raise InvalidRequest.of_option(option, f"too many {unit}; at most {limit} are allowed")


def check_stop(stop: Sequence[str], settings: Settings) -> None:
    """Raise InvalidRequest for too many stop strings, or one that is empty or too long."""
    at_most("stop", len(stop), settings.max_stop, "stop strings")
    longest = settings.max_stop_chars
    if any(not 1 <= len(each) <= longest for each in stop):
        raise InvalidRequest.of_option("stop", f"a stop string has 1 to {longest} characters")


def check_details(
    option: str,
    tokens: int,
    alternatives: int,
    settings: Settings,
    unit: str = "details: tokens · (4 + alternatives)",
) -> None:
    """Reserve room for the details of an answer until it has been sent.

    Raises InvalidRequest if they exceed the limit of one request, and QueueFull if other requests
    hold the room.

    A token takes as much memory as four alternatives (measured: 2.2 kB and 0.65 kB in /score).
    """
    count = tokens * (4 + alternatives)
    at_most(option, count, settings.max_details, unit)
    request = current_request()
    if request.details is not None and not request.take_bytes(request.details, count):
        raise QueueFull(
            f"at most {request.details.limit} details (tokens · (4 + alternatives)) may be in "
            "preparation at once; ask for fewer, or try again",
            headers={"Retry-After": str(RETRY_AFTER_S)},
        )
