"""Bytes that all requests of a process may hold together."""


class ByteBudget:
    """A number of bytes to share; taken and given back in the event loop."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0

    def take(self, count: int) -> bool:
        """Take so many, if they are there."""
        if self.taken + count > self.limit:
            return False
        self.taken += count
        return True

    def give_back(self, count: int) -> None:
        """Of those that were taken."""
        self.taken -= count
