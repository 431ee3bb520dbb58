"""The C library's allocator: limit its arenas, and return free memory to the system.

glibc keeps free memory in arenas and opens one for each thread that allocates at the same time, up
to eight per processor. Requests run on many threads, so in time each arena has held the largest
request, and memory that is free in one arena cannot be used by another. 44,000 random requests grew
a process from 171 to 489 MB with all arenas, and to 288 MB with two. Other C libraries do not have
this problem, and nothing is done there.
"""

import ctypes
import sys
from collections.abc import Mapping

MAX_ARENAS = 2
_M_ARENA_MAX = -8  # of <malloc.h>
# What an operator sets for glibc itself (its manual, 39.1 and "Malloc Tunable Parameters").
_ENVIRONMENT = "MALLOC_ARENA_MAX"
_TUNABLES, _TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.arena_max"


def bound_arenas(environment: Mapping[str, str]) -> bool:
    """Limit this process to MAX_ARENAS arenas, unless its environment sets a number.

    Returns whether it is limited. Existing arenas stay, so call it before threads start.
    """
    if _ENVIRONMENT in environment or _TUNABLE in environment.get(_TUNABLES, ""):
        return False
    library = _glibc()
    return library is not None and library.mallopt(_M_ARENA_MAX, MAX_ARENAS) == 1


def return_free_memory() -> None:
    """Return free memory to the system: glibc keeps what lies between other blocks."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """The C library of this process where it is glibc; others have other calls and numbers."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
