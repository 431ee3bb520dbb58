"""How long a source is made for the graphs that read it.

What attention sums up over a source's positions depends in its last bits on how many there are. So
a source is always padded to the same length, which follows from its own length alone, and only
sources of one padded length are read or attended to together: alone or in company, the same bits.
"""

_SMALLEST_STEP = 16


def padded_length(tokens: int) -> int:
    """The positions of a source of so many tokens, eos counted: a few sizes for each doubling."""
    step = max(_SMALLEST_STEP, 1 << (tokens // 4).bit_length() - 1 if tokens >= 4 else 0)
    return -(-tokens // step) * step
