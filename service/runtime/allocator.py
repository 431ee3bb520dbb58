"""The C library's allocator: how many arenas it may have, and what it gives back.

glibc keeps free memory by arena and opens one for each thread that asks at the same time, up to
eight a processor. Requests meet many threads, so in time each arena has held the largest of them,
and what is free in one is of no use in another: 44,000 random requests grew a process from 171 to
489 MB with all of them, and to 288 MB with two. Other C libraries have nothing of the kind, and
nothing is done there.
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
    """Hold this process to MAX_ARENAS arenas, unless its environment says how many; whether it is.

    Arenas that exist stay, so it comes before the threads.
    """
    if _ENVIRONMENT in environment or _TUNABLE in environment.get(_TUNABLES, ""):
        return False
    library = _glibc()
    return library is not None and library.mallopt(_M_ARENA_MAX, MAX_ARENAS) == 1


def return_free_memory() -> None:
    """Give the system back what is free: glibc keeps what lies between other blocks."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """The C library of this process where it is glibc; others have other calls and numbers."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
