"""Count the values in a JSON text before parsing it."""

import numpy as np

_PART = 1 << 16
_QUOTE = ord('"')
# The characters that come before a value of a list or an object.
_MARKS = (b",", b"[", b"{")
_BEFORE_VALUES = np.zeros(256, np.bool_)
_BEFORE_VALUES[list(b",[{")] = True


def holds_more_values(body: bytes | bytearray, limit: int) -> bool:
    """Whether there are more commas and opening brackets outside strings than `limit`.

    Parsing turns a value of a few bytes into an object of a hundred, and no other thread runs
    meanwhile. For text that is not JSON, the count may be wrong.
    """
    if sum(map(body.count, _MARKS)) <= limit:
        return False
    found, inside, start = 0, 0, 0
    while start < len(body):
        end = min(start + _PART, len(body))
        # Keep an escape sequence in one part.
        while end < len(body) and body[end - 1] == ord("\\"):
            end += 1
        part = body[start:end].replace(b"\\\\", b"__").replace(b'\\"', b"__")
        bytes_ = np.frombuffer(part, np.uint8)
        quotes = (np.cumsum(bytes_ == _QUOTE) + inside) & 1  # 1 within a string
        found += int(np.count_nonzero(_BEFORE_VALUES[bytes_] & (quotes == 0)))
        if found > limit:
            return True
        inside = int(quotes[-1])
        start = end
    return False
