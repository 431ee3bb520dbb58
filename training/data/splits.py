"""Which split a text belongs to, by a hash that it is known by."""

SPLITS = ("train", "valid", "test")
TRAIN, VALID, TEST = range(3)


def split_of(digest: bytes, *, valid_fraction: float, test_fraction: float) -> int:
    """TRAIN, VALID or TEST; evenly spread digests of 8 bytes fill them by the fractions."""
    place = int.from_bytes(digest) / 2**64
    if place < test_fraction:
        return TEST
    return VALID if place < test_fraction + valid_fraction else TRAIN
