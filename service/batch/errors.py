"""The errors of a run over files."""


class BatchError(Exception):
    """The run cannot begin or go on; the message is one line, or several."""


class DamagedFile(Exception):
    """An input ends too early or cannot be decompressed; other files can be read."""
