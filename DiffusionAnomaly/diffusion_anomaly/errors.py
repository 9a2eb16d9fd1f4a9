"""Errors that a user can act on, each with the exit code that the worker and the command line end with.

Kept free of every heavy import: Slicer's own process reads the codes from here.
"""

from __future__ import annotations

import errno

from .text import LINES, printable

NO_SPACE = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
"""Numbers by which the operating system says that the disk, or the user's share of it, is full."""

_LONGEST = 2000  # characters of one error that anybody reads


class EngineError(Exception):
    """Something the user should read: what happened, and what to do about it.

    Args:
        what: One sentence naming what was found and what was expected.
        hint: One sentence saying what to do. May be empty.
    """

    code = "internal"
    exit_code = 1

    def __init__(self, what: str, hint: str = "") -> None:
        what, hint = (_shortened(printable(text, LINES)) for text in (what, hint))
        super().__init__(f"{what} {hint}".strip())
        self.what = what
        self.hint = hint


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 200]} … {text[-190:]}"


class InputError(EngineError):
    """The scan, the mask or an option cannot be used as given."""

    code = "bad_input"
    exit_code = 2


class DiskFull(InputError):  # noqa: N818 - reads as the event it is
    """There is no space left where something was to be written."""

    code = "disk_full"


class ModelError(EngineError):
    """The model package is missing, damaged, foreign or does not fit the method."""

    code = "model"
    exit_code = 3


class MemoryExhausted(EngineError):  # noqa: N818 - reads as the event it is
    """Memory ran out even with one slice a batch on the CPU."""

    code = "out_of_memory"
    exit_code = 4


class Cancelled(EngineError):  # noqa: N818 - reads as the event it is
    """The user, or the end of the controlling process, stopped the job."""

    code = "cancelled"
    exit_code = 5
