"""Errors in what a user provides, and in what a run has become."""


class ConfigError(Exception):
    """A configuration, or a file that it names, cannot be used.

    The message names the option or the file, and says what is allowed.
    """


class ExportError(Exception):
    """Nothing was written; the message says why."""


class Unverifiable(ExportError):
    """Nobody can say whether the int8 graphs are right: the bundle is written without them."""
