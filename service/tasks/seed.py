"""The seed of a request's noise."""

import secrets

_SEED_BITS = 48  # a seed survives JSON readers that hold numbers as doubles


def drawn_seed(seed: int | None) -> int:
    """The seed that was given, or a fresh one."""
    return secrets.randbits(_SEED_BITS) if seed is None else seed
