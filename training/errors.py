"""Errors in what a user provides."""


class ConfigError(Exception):
    """A configuration, or a file that it names, cannot be used.

    The message names the option or the file, and says what is allowed.
    """
