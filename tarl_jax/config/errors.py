"""Errors that the project raises on purpose: what a command prints as one line, without traceback.

The message names the thing, the value and the remedy. An error of any other class is one that
nobody foresaw: it keeps its traceback.
"""

from __future__ import annotations


class TarlError(Exception):
    """Something outside went wrong, or cannot go on; the base of all of them.

    code: the exit status of a command that ends with it.
    keeps_run: a run that ends with it before its first checkpoint keeps its directory.
    """

    code = 1
    keeps_run = False


class InputError(TarlError, ValueError):
    """What the user gave cannot be used: a value, a file, a combination."""

    code = 2


class ConfigError(InputError):
    """A config key or value that no run can use."""


class MissingFileError(InputError, FileNotFoundError):
    """A file or folder that the user named is not there."""
