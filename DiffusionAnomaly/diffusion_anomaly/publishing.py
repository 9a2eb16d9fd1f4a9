"""Several files that belong together appear together, complete, or not at all.

All are first written into a hidden folder beside their place, so a full disk, a cancel or a kill leaves nothing under
the final names; only then are they renamed, and the file that speaks for the others is renamed last. Whoever finds
that file finds a complete set.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from .atomic import write_error
from .errors import InputError

UNFINISHED = ".unfinished-"
"""How the hidden folders begin, for whoever has to end a writer by force and tidy up."""

Writer = Callable[[Path], object]
"""Writes one file at the path it is given."""


def prepare_folder(directory: Path | str) -> Path:
    """Make the folder for results if need be and try a file in it, before a long computation.

    Raises:
        InputError: when it cannot be made or written to.
    """
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return directory
    except OSError as error:
        raise write_error(directory / "results", error) from error


def publish(directory: Path | str, writers: Mapping[str, Writer]) -> dict[str, Path]:
    """Write files and put them in place together, replacing those of an earlier run.

    Args:
        directory: the folder; made if it does not exist.
        writers: for each file name what writes it, run in this order. The last file speaks for the others: an
            earlier one of that name goes first, and the new one comes last.

    Returns:
        For each name its final path.

    Raises:
        InputError: when the disk is full or a file cannot be written or replaced. The folder is then as it was.
    """
    directory = prepare_folder(directory)
    name, new = "", directory
    try:
        with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=directory) as staging:
            new, old = Path(staging) / "new", Path(staging) / "old"
            new.mkdir()
            old.mkdir()
            for name, write in writers.items():
                write(new / name)
                _flush_to_disk(new / name)
            _exchange(directory, new, old, list(writers))
    except OSError as error:
        raise write_error(directory / Path(str(error.filename or name)).name, error) from error
    except InputError as error:  # the user asked for no hidden folder, so no message names one
        raise InputError(error.what.replace(str(new), str(directory)), error.hint) from error
    return {name: directory / name for name in writers}


def _exchange(directory: Path, new: Path, old: Path, names: list[str]) -> None:
    """Move the old files aside and the new ones in; on a failure, everything back."""
    try:
        for name in reversed(names):
            if os.path.lexists(directory / name):
                os.replace(directory / name, old / name)
        for name in names:
            os.replace(new / name, directory / name)
    except OSError:
        for name in names:
            if not (new / name).exists() and (directory / name).exists():
                os.replace(directory / name, new / name)
            if os.path.lexists(old / name):
                os.replace(old / name, directory / name)
        raise


def _flush_to_disk(path: Path) -> None:
    """Wait until the bytes are on the disk: some file systems only then find out that they are full."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def remove_if_empty(directory: Path) -> None:
    """Take away a folder that was made for results that did not come."""
    with contextlib.suppress(OSError):  # not empty, or already gone: both are fine
        directory.rmdir()
