"""The folder that results go into: one run at a time, all of a result or nothing, nothing of the user's replaced.

A result is written into a hidden folder in its own and then renamed, the record last: a JSON file that holds the SHA256
of every other file. What such a record names, and still has the bytes it names, is an earlier result and may be
replaced; everything else is the user's and is never touched. A run that was killed half way through the renames is
undone by the next one, which finds its record in the hidden folder.

Needs the standard library only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import InputError
from ..process import uninterrupted
from .files import Writer, folder_error, lock_folder, write_error
from .records import DIGESTS, RECORDS, content_of, sha256_of

UNFINISHED = ".unfinished-"
"""How the hidden folders begin, for whoever has to end a writer by force and tidy up."""

ELSEWHERE = "Choose another output folder, or move that file away."


class OutputFolder:
    """Results' folder while one run writes into it.

        with OutputFolder("out", inputs=[scan]) as folder:
            folder.check(["heat.nii.gz", "provenance.json"])
            ...
            folder.publish({"heat.nii.gz": write_map, "provenance.json": record(about)})

    Folders that it made are gone again when nothing came into them.

    Args:
        directory: made if it does not exist.
        inputs: files and folders that the run reads.
        commit: called when all files are written, just before they take their places; what it raises stops that. Once
            it has returned, only a kill from outside can leave half a result.

    Raises:
        InputError: on entry, when it is no folder or cannot be written to, another run writes into it, or it lies in a
            folder that is read as a whole.
    """

    def __init__(
        self, directory: Path | str, inputs: Iterable[Path | str] = (), commit: Callable[[], None] = lambda: None
    ) -> None:
        self.path = _as_path(directory)
        self.published = False
        self._inputs = [Path(given) for given in inputs]
        self._commit = commit
        self._made: list[Path] = []
        self._lock: int | None = None
        self._staging: Path | None = None
        self._elsewhere: Path | None = None
        self._place = self.path

    def __enter__(self) -> OutputFolder:
        keep_out_of(self._inputs, self.path)
        try:
            self._open()
        except BaseException as error:
            self._close()
            if isinstance(error, OSError):
                raise folder_error(self.path, error) from error
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with uninterrupted():
            self._close()

    @property
    def new(self) -> Path:
        """A hidden folder for files that are published later, on the same disk."""
        if self._staging is None:
            try:
                with uninterrupted():
                    self._staging = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=self.path))
                    (self._staging / "old").mkdir()
                    (self._staging / "new").mkdir()
                    self._place = self._pronounceable(self._staging / "new")
            except OSError as error:
                raise folder_error(self.path, error) from error
        return self._place

    def check(self, names: Iterable[str]) -> list[str]:
        """Make sure that files of these names would replace nothing but an earlier result.

        Args:
            names: of the files, relative to the folder.

        Returns:
            The files of the earlier result that must make room, its records first.

        Raises:
            InputError: naming the file that is in the way.
        """
        names = list(names)
        for name, given in ((name, given) for name in names for given in self._inputs):
            if _same_file(self.path / name, given):
                raise InputError(
                    f"{self.path / name} is read by this run and would be replaced by its result.",
                    "Choose another output folder.",
                )
        earlier = _earlier(self.path, {*RECORDS, *names[-1:]})
        # A record goes when it is written anew, or when it speaks of a file that is.
        going = {name: files for name, files in earlier.items() if name in names or set(files) & set(names)}
        if set(RECORDS) & set(names) and (foreign := next((name for name in earlier if name not in going), None)):
            raise InputError(
                f"{self.path} holds another result ({foreign}), and the two would mix.", "Choose another output folder."
            )
        ours = {name: digest for files in going.values() for name, digest in files.items()}
        for name in dict.fromkeys((*names, *ours)):
            path = self.path / name
            if not os.path.lexists(path) or name in going:
                continue
            if name not in ours:
                raise InputError(f"{path} is there already and is not known as a result of this program.", ELSEWHERE)
            if path.is_symlink() or not path.is_file() or sha256_of(path) != ours[name]:
                raise InputError(f"{path} was changed since this program wrote it.", ELSEWHERE)
        return [name for name in (*going, *ours) if os.path.lexists(self.path / name)]

    def replaced(self, names: Iterable[str]) -> dict[str, Mapping[str, Any]]:
        """The records that make room for files of these names, by name, with what they say.

        Raises:
            InputError: as ``check``.
        """
        going = [name for name in self.check(names) if name in RECORDS]
        return {name: content for name in going if (content := content_of(self.path / name)) is not None}

    def publish(self, writers: Mapping[str, Writer]) -> dict[str, Path]:
        """Write files and put them in place together with those in ``new``, instead of an earlier result.

        Args:
            writers: for each file name what writes it, run in this order. The last file speaks for the others and
                comes into place last; make it with ``record``, so that a later run may replace them all.

        Returns:
            For each name its final path.

        Raises:
            InputError: when a file that is no earlier result is in the way, the disk is full or a file cannot be
                written or replaced. The folder is then as it was.
        """
        new, name = self.new, ""
        names = [*sorted(path.relative_to(new).as_posix() for path in new.rglob("*") if path.is_file()), *writers]
        self.check(names)
        try:
            for name, write in writers.items():
                write(new / name)
                _flush_to_disk(new / name)
            with uninterrupted():
                going = self.check(names)
                self._commit()
                _exchange(self.path, new, self._old, going, names)
                self.published = True
        except OSError as error:
            raise write_error(self.path / Path(str(error.filename or name)).name, error) from error
        except InputError as error:  # the user asked for no hidden folder, so no message names one
            raise type(error)(error.what.replace(str(new), str(self.path)), error.hint) from error
        return {name: self.path / name for name in names}

    def discard(self) -> None:
        """Take away what this run has made, before it commits; from any thread, when the process is to end at once."""
        for place in (self._staging, self._elsewhere):
            if place is not None:
                shutil.rmtree(place, ignore_errors=True)
        for folder in reversed(self._made):
            remove_if_empty(folder)

    @property
    def _old(self) -> Path:
        assert self._staging is not None
        return self._staging / "old"

    def _pronounceable(self, folder: Path) -> Path:
        """A path to the folder that C++ libraries take too: they end the process over one that is no UTF-8."""
        try:
            str(folder.absolute()).encode("utf-8")
        except UnicodeEncodeError:
            self._elsewhere = Path(tempfile.mkdtemp())
            (self._elsewhere / "results").symlink_to(folder.absolute(), target_is_directory=True)
            return self._elsewhere / "results"
        return folder

    def _open(self) -> None:
        while True:
            self._make()
            self._lock = _locked(self.path)
            if self._lock is None or _is_open_on(self._lock, self.path):
                break
            os.close(self._lock)  # the run that had it took the folder away: it is another one now
        if self._lock is not None:
            # Without the lock a hidden folder may belong to a run that is still at work.
            for leftover in self.path.glob(f"{UNFINISHED}*"):
                undo(leftover, self.path)
        with tempfile.TemporaryFile(dir=self.path):
            pass

    def _make(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"The output folder {self.path} is a file.", "Choose a folder.")
        missing = [folder for folder in (self.path, *self.path.parents) if not os.path.lexists(folder)]
        for folder in reversed(missing):
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                self._made.append(folder)

    def _close(self) -> None:
        self.discard()
        self._staging = self._elsewhere = None
        self._made.clear()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def keep_out_of(inputs: Iterable[Path], directory: Path) -> None:
    """Make sure that results do not go into a folder that is read.

    Raises:
        InputError: naming it.
    """
    for given in inputs:
        if given.is_dir() and _is_inside(directory, given):
            raise InputError(
                f"The output folder {directory} lies in {given}, which is read as one scan.",
                "Results there would be taken for a part of it; choose an output folder elsewhere.",
            )


def keep_out_of_results(directory: Path) -> None:
    """Make sure that what is made of many scans does not go among the results of single ones.

    Raises:
        InputError: naming one of these, when it lies in a folder of the folder.
    """
    for name in RECORDS:
        for record in sorted(directory.glob(f"*/{name}")):
            if content_of(record) is not None:
                raise InputError(
                    f"{directory} holds results of its own, such as {record.parent}.", "Choose another output folder."
                )


def publish(directory: Path | str, writers: Mapping[str, Writer]) -> dict[str, Path]:
    """Write files into a folder and put them in place together, see ``OutputFolder.publish``.

    Raises:
        InputError: as an ``OutputFolder``.
    """
    with OutputFolder(directory) as folder:
        return folder.publish(writers)


def prepare_folder(directory: Path | str, names: Iterable[str] = ()) -> Path:
    """Make the folder for results if need be and try a file in it, before a long computation.

    Args:
        directory: the folder.
        names: of files that are published later, the record last.

    Raises:
        InputError: when it cannot be made or written to, or what such a file would replace is no earlier result.
    """
    directory = _as_path(directory)
    OutputFolder(directory).check(names)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return directory
    except OSError as error:
        raise folder_error(directory, error) from error


def remove_if_empty(directory: Path) -> None:
    """Take away a folder that was made for results that did not come."""
    with contextlib.suppress(OSError):  # not empty, or already gone: both are fine
        directory.rmdir()


def _as_path(directory: Any) -> Path:
    if not isinstance(directory, (str, os.PathLike)):
        raise InputError(f"The output folder is {directory!r}.", "Give the path of a folder.")
    if not os.fspath(directory):
        raise InputError("The output folder has an empty name.", "Give the path of a folder; . is this one.")
    if "\0" in os.fspath(directory):
        raise InputError(f"The output folder {os.fspath(directory)!r} has a null character.", "Give another name.")
    return Path(directory)


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether a path that may not exist yet is the folder or lies in it, whatever links lead there."""
    path = Path(os.path.realpath(path))  # which takes a circle of links as it is
    return any(_same_file(place, folder) for place in (path, *path.parents))


def _same_file(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):  # one of them does not exist
        return False


def _locked(directory: Path) -> int | None:
    """A lock on the folder, see ``lock_folder``."""
    try:
        return lock_folder(directory)
    except BlockingIOError as error:
        raise InputError(
            f"Another run writes into {directory} just now.", "Wait for its end, or choose another output folder."
        ) from error


def _is_open_on(descriptor: int, directory: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(directory))
    except OSError:
        return False


def _earlier(directory: Path, records: Iterable[str]) -> dict[str, dict[str, str]]:
    """The records in a folder, and for each what it says of its files."""
    found = {name: content_of(directory / name) for name in records}
    return {name: content[DIGESTS] for name, content in found.items() if content is not None}


def _exchange(directory: Path, new: Path, old: Path, going: list[str], coming: list[str]) -> None:
    """Move the old files aside, their records first, and the new ones in, their record last; on a failure, all back."""
    made: list[Path] = []
    try:
        for name in going:
            (old / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(directory / name, old / name)
        for name in coming:
            for folder in reversed((directory / name).parents):
                if not folder.exists():
                    folder.mkdir()
                    made.append(folder)
            os.replace(new / name, directory / name)
    except OSError:
        for name in reversed(coming):
            if not (new / name).exists() and (directory / name).exists():
                os.replace(directory / name, new / name)
        for name in going:
            if os.path.lexists(old / name):
                os.replace(old / name, directory / name)
        for folder in reversed(made):
            remove_if_empty(folder)
        raise
    for name in going:  # folders that held stale files alone
        _remove_empty_above(directory / name, directory)


def _remove_empty_above(path: Path, top: Path) -> None:
    for folder in path.parents:
        if folder == top:
            break
        remove_if_empty(folder)


def undo(leftover: Path, directory: Path) -> None:
    """Take away the hidden folder that a killed run left, and bring back what it had moved aside.

    While a record waits in ``new``, the renames had not ended: what it names and is in place already came from there.
    """
    new, old = leftover / "new", leftover / "old"
    if leftover.is_symlink() or not leftover.is_dir() or {path.name for path in leftover.iterdir()} - {"new", "old"}:
        return  # not ours
    waiting = _earlier(new, {*RECORDS, *(path.name for path in new.glob("*.json"))})
    for files in waiting.values():
        for name, digest in files.items():
            path = directory / name
            if not (new / name).exists() and path.is_file() and not path.is_symlink() and sha256_of(path) == digest:
                path.unlink()
            _remove_empty_above(path, directory)
    if waiting:
        moved = sorted(path.relative_to(old).as_posix() for path in old.rglob("*") if path.is_file())
        for name in sorted(moved, key=lambda name: name in RECORDS):  # records last
            if not os.path.lexists(directory / name):
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(old / name, directory / name)
    shutil.rmtree(leftover, ignore_errors=True)


def _flush_to_disk(path: Path) -> None:
    """Wait until the bytes are on the disk: some file systems only then find out that they are full."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
