"""The length to which a source is padded.

Attention sums over a source's positions, and the last bits of that sum depend on their number. So a
source's padded length follows from its own length alone, and only sources of the same padded length
are read or attended to together. A source's results are then the same bits, alone or in company.
"""

_SMALLEST_STEP = 16


def padded_length(tokens: int) -> int:
    """The padded length of a source of `tokens` tokens, eos counted: a few sizes per doubling."""
    step = max(_SMALLEST_STEP, 1 << (tokens // 4).bit_length() - 1 if tokens >= 4 else 0)
    return -(-tokens // step) * step
