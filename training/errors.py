"""What is wrong with what a user gave."""


class ConfigError(Exception):
    """A configuration, or a file that it names, that cannot be used.

    The message names the option or the file, and what is allowed.
    """
