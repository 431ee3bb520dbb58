"""What goes wrong when a data set is built."""


class DatasetError(Exception):
    """A data set cannot be built: one line that says what is missing and what to do."""
