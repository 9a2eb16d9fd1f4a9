"""Files that are whole or not there, one by one or several together. A reader never meets half a result.

Files that belong together are first written into a hidden folder beside their place, so a full disk, a cancel or a kill
leaves nothing under the final names; only then are they renamed, and the file that speaks for the others last. Whoever
finds that file finds a complete set.

Needs the standard library only, so that every part of the engine and Slicer's own process can use it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary name beside `path` to write to; at the end it becomes `path` in one step.

    The temporary name is hidden and keeps the suffix, since image writers choose the format by it. When the
    body fails, the temporary file is removed and whatever stood at `path` stays as it was.

    Raises:
        InputError: when the operating system refuses: no such folder, no permission, disk full.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with whole_file(folder / "note.txt") as partial:
    ...     _ = partial.write_text("whole", encoding="utf-8")
    >>> [file.name for file in folder.iterdir()]
    ['note.txt']
    """
    path = Path(path)
    partial = partial_name(path)
    try:
        try:
            yield partial
            with open(partial, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(path, error) from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file with Unix line ends, whole or not at all.

    Raises:
        InputError: when the operating system refuses.
    """
    with whole_file(path) as partial:
        partial.write_bytes(text.encode("utf-8"))


def file_stem(text: str) -> str:
    """Text as a part of a file name that every system takes.

    >>> file_stem("T1 + contrast")
    'T1_contrast'
    """
    return re.sub(r"[^\w.()-]+", "_", text)


def partial_name(path: Path, suffix: str | None = None) -> Path:
    """A hidden name in the folder of `path` that nothing else uses, with its suffix or the one given."""
    suffix = "".join(path.suffixes[-2:]) if suffix is None else suffix
    return path.with_name(f".partial-{secrets.token_hex(6)}{suffix}")


def write_error(path: Path, error: OSError) -> InputError:
    """What to tell the user when the operating system refuses a write."""
    folder = path.parent
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return InputError(
            f"{path} could not be written: no space left on the disk.",
            "Free some space or choose another output folder.",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return InputError(
            f"{path} could not be written: no permission to write in {folder}.",
            "Choose an output folder that you may write to.",
        )
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return InputError(f"{path} could not be written: there is no folder {folder}.", "Create the folder first.")
    return InputError(f"{path} could not be written: {error.strerror or error}.", "Choose another output folder.")


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
