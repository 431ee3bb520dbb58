"""A limit on the bytes that all requests of a process may hold together."""


class ByteBudget:
    """A shared number of bytes. Take them and give them back in the event loop only."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0

    def take(self, count: int) -> bool:
        """Take `count` bytes; false, and nothing taken, if there are not that many left."""
        if self.taken + count > self.limit:
            return False
        self.taken += count
        return True

    def give_back(self, count: int) -> None:
        """Give back `count` of the bytes taken before."""
        self.taken -= count
