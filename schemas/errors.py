"""Errors a user can meet. Every text says what was tried on what, what was found, and what to do next."""

import traceback

OTHER_DISK = (
    "a folder in it is a link to another disk, where nothing can be put in its place at once; link the whole lake"
)
"""What is said where a rename leads from one disk to another."""


class LakeError(Exception):
    """Base of all errors of this project; the command line prints it as one line and exits with 1."""


class UsageError(LakeError, ValueError):
    """A mistake in what was asked or in the input; nothing was written, and the command line exits with 2."""


class SchemaError(UsageError):
    """Labelled data lacks a dim, variable or label that the computation needs."""


class MissingRunError(UsageError, LookupError):
    """A run, model or result that is not in the lake."""


class SpecMismatchError(UsageError):
    """An existing run was made from another spec, model or data file."""


class CorruptLakeError(LakeError):
    """Bytes on disk are not there, or do not agree with their checksums, the record or the layout."""


class RemovedError(CorruptLakeError):
    """What was opened was removed since, or another one is in its place: nothing is damaged."""


class UnwritableLakeError(LakeError):
    """A result that is computed and cannot be stored: the lake is read-only, or the disk full.

    Parameters
    ----------
    message
        What was tried on what.
    read_only
        Whether nothing could be stored there anyway, so that a command that prints its result does all it can.
    """

    def __init__(self, message: str, *, read_only: bool = True) -> None:
        super().__init__(message)
        self.read_only = read_only


class LeftOutWarning(UserWarning):
    """What another package brings could not be taken; the command line says it in one line."""


def line_of(error: BaseException, package: str) -> str:
    """``line N of FILE``: the last line of a package or module, on the way to an error; ``""`` if it was not there."""
    line = ""
    for frame, number in traceback.walk_tb(error.__traceback__):
        if f"{frame.f_globals.get('__name__', '')}.".startswith(f"{package}."):
            line = f"line {number} of {frame.f_code.co_filename}"
    return line
