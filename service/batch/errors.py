"""The errors of a run over files."""


class BatchError(Exception):
    """The run cannot start or continue; the message may have several lines."""


class DamagedFile(Exception):
    """An input ends too early or cannot be decompressed; other files can be read."""
