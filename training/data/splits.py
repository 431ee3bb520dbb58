"""Assigns a text to a split by its hash."""

SPLITS = ("train", "valid", "test")
TRAIN, VALID, TEST = range(3)


def split_of(digest: bytes, *, valid_fraction: float, test_fraction: float) -> int:
    """TRAIN, VALID or TEST: 8 bytes of a digest decide, in proportion to the fractions."""
    place = int.from_bytes(digest) / 2**64
    if place < test_fraction:
        return TEST
    return VALID if place < test_fraction + valid_fraction else TRAIN
