"""Failures a person can do something about: one line, the thing and the remedy."""


class MienError(Exception):
    """An expected failure. The message names the file, key or stream and says what to do."""

    exit_code = 1


class UsageError(MienError):
    """Wrong use: a bad argument, a bad configuration."""

    exit_code = 2
