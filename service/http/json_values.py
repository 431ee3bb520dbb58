"""How many values a JSON text holds, before anything is made of it."""

import numpy as np

_PART = 1 << 16
_QUOTE = ord('"')
# What a value of a list or an object stands behind.
_MARKS = (b",", b"[", b"{")
_BEFORE_VALUES = np.zeros(256, np.bool_)
_BEFORE_VALUES[list(b",[{")] = True


def holds_more_values(body: bytes | bytearray, limit: int) -> bool:
    """Whether there are more commas and brackets outside of strings than `limit`.

    A value of a few bytes becomes an object of a hundred, while no other thread may run. What is
    no JSON may be counted either way.
    """
    if sum(map(body.count, _MARKS)) <= limit:
        return False
    found, inside, start = 0, 0, 0
    while start < len(body):
        end = min(start + _PART, len(body))
        # What is escaped stays together.
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
