"""Files that are whole or not there, one by one. A reader never meets half a file; ``outputs`` does it with several.

Needs the standard library only, so that every part of the engine and Slicer's own process can use it.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import NO_SPACE, DiskFull, EngineError, InputError, MemoryExhausted
from ..text import safe_name

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def lock_folder(folder: str | os.PathLike[str]) -> int | None:
    """A lock on a folder itself, which ends with the process and leaves no file.

    Returns:
        The descriptor to close; None where there are no locks, as on Windows and some network file systems.

    Raises:
        BlockingIOError: when another process holds it.
    """
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise BlockingIOError(error.errno, error.strerror) from error
        return None
    return descriptor


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
    """Write a UTF-8 text file with Unix line ends, whole or not at all. What is no character becomes its escape.

    Raises:
        InputError: when the operating system refuses.
    """
    with whole_file(path) as partial:
        partial.write_bytes(text.encode("utf-8", "backslashreplace"))


def keep_foreign(path: Path, is_ours: Callable[[Path], bool]) -> None:
    """Make sure that writing a file replaces nothing but an earlier one of its kind.

    Raises:
        InputError: when something else has its name.
    """
    try:
        ours = not os.path.lexists(path) or (path.is_file() and not path.is_symlink() and is_ours(path))
    except (OSError, ValueError):
        ours = False
    if not ours:
        raise InputError(
            f"{path} is there already and is not known as a result of this program.",
            "Choose another name, or move that file away.",
        )


def holds_arrays(names: Iterable[str]) -> Callable[[Path], bool]:
    """Tells whether a file is a NumPy archive of exactly these arrays."""
    wanted = {f"{name}.npy" for name in names}
    return lambda path: zipfile.is_zipfile(path) and set(zipfile.ZipFile(path).namelist()) == wanted


def file_stem(text: str) -> str:
    """Text as a part of a file name that every system takes.

    >>> file_stem("T1 + contrast")
    'T1_contrast'
    """
    return safe_name(re.sub(r"[^\w.()-]+", "_", text), "_")


def partial_name(path: Path) -> Path:
    """A hidden name in the folder of `path` that nothing else uses, with its suffix."""
    return path.with_name(f".partial-{secrets.token_hex(6)}{''.join(path.suffixes[-2:])}")


def write_error(path: Path, error: OSError) -> EngineError:
    """What to tell the user when the operating system refuses a write."""
    folder = path.parent
    if error.errno == errno.EFBIG:
        return InputError(
            f"{path} could not be written: no space left for a file so large.",
            "Free some space, raise the limit (ulimit -f), or choose another output folder.",
        )
    if error.errno in NO_SPACE:
        return DiskFull(
            f"{path} could not be written: no space left on the disk.",
            "Free some space or choose another output folder.",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return InputError(
            f"{path} could not be written: no permission to write in {folder}.",
            "Choose an output folder that you may write to.",
        )
    if error.errno == errno.ENOMEM:
        return MemoryExhausted(f"Memory ran out while {path} was written.", "Close other programs.")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return InputError(f"{path} could not be written: too many open files.", "Raise the limit, see ulimit -n.")
    if error.errno == errno.ENAMETOOLONG:
        return InputError(f"{path} could not be written: the name is too long.", "Choose a shorter one.")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return InputError(f"{path} could not be written: there is no folder {folder}.", "Create the folder first.")
    return InputError(f"{path} could not be written: {error.strerror or error}.", "Choose another output folder.")


def folder_error(folder: Path, error: OSError) -> EngineError:
    """What to tell the user when the operating system refuses a folder for results."""
    if error.errno in (errno.ELOOP, errno.EEXIST):
        return InputError(
            f"The output folder {folder} is no folder: a file, or a link that leads nowhere.", "Choose another folder."
        )
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return InputError(f"The output folder {folder} cannot be made there.", "Choose another output folder.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return InputError(
            f"The output folder {folder} could not be written to: no permission.",
            "Choose an output folder that you may write to.",
        )
    return write_error(folder / "results", error)


Writer = Callable[[Path], object]
"""Writes one file at the path it is given."""
