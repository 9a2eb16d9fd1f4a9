"""The server's folder: who has it, the folders of jobs in it, and voxels that arrive there within bounds.

Every name on the disk is made here. A job's folder is gone when the job is, and whatever an earlier server left goes
when the next one starts.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import zlib
from pathlib import Path
from types import TracebackType

from ..client.wire import ImageHeader
from ..errors import InputError
from ..io.files import folder_error, lock_folder

JOBS = "jobs"
# Of a job: the voxels, and anomaly map, masks, reconstruction and report beside them.
TIMES_THE_SCAN = 4
_JOB = re.compile(r"[0-9a-f]{32}")
_PIECE = 1 << 20  # bytes that are inflated at a time


class WrongBody(ValueError):  # noqa: N818 - reads as the event it is
    """What came is not what its header promised."""


class Spool:
    """The folder of one server at a time.

    Args:
        folder: made if it does not exist, for its owner alone.
        reserve: bytes of the disk that stay free.

    Raises:
        InputError: on entry, when another server has it or it cannot be written to.
    """

    def __init__(self, folder: Path, reserve: int) -> None:
        self.folder = folder
        self._jobs = folder / JOBS
        self._reserve = reserve
        self._lock: int | None = None

    def __enter__(self) -> Spool:
        try:
            for place in (self.folder, self._jobs):
                place.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _locked(self.folder)
            self._sweep()
        except OSError as error:
            self._unlock()
            raise folder_error(self.folder, error) from error
        except BaseException:
            self._unlock()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sweep()
        self._unlock()

    def free(self) -> int:
        """Bytes of the disk that jobs may take.

        Raises:
            OSError: when the disk does not say.
        """
        return shutil.disk_usage(self._jobs).free - self._reserve

    def new_job(self) -> tuple[str, Path]:
        """A new job's name, which nobody can guess, and its folder, which is still to be made."""
        name = secrets.token_hex(16)
        return name, self._jobs / name

    def _sweep(self) -> None:
        """Delete the folders of jobs; what has another name was put there by somebody else."""
        for folder in self._jobs.iterdir():
            if _JOB.fullmatch(folder.name):
                remove(folder)

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def remove(folder: Path) -> None:
    """Delete a job's folder. What is still locked, as on Windows, goes at the next start.

    It is renamed first, so that nobody can put a file into it that is on its way at this moment.
    """
    going = folder.with_name(secrets.token_hex(16))
    try:
        os.rename(folder, going)
    except OSError:  # it is gone already, or a file in it is open on Windows
        going = folder
    shutil.rmtree(going, ignore_errors=True)


class VoxelFile:
    """One image on its way to the disk; nothing of it stays unless ``finish`` returned.

    Args:
        path: of the MetaImage file that it becomes.
        header: what the client promised.
        is_gzip: whether what comes is compressed.

    Raises:
        OSError: when the disk refuses, also from the methods.
    """

    def __init__(self, path: Path, header: ImageHeader, is_gzip: bool) -> None:
        self._path = path
        self._partial = path.with_suffix(".part")
        self._header = header
        self._inflate = zlib.decompressobj(31) if is_gzip else None
        self._digest = hashlib.sha256()
        self._left = header.bytes
        self._file = open(self._partial, "wb")  # noqa: SIM115 - closed by finish and discard
        self._file.write(header.metaimage())

    def write(self, data: bytes) -> None:
        """Take a piece of the body.

        Raises:
            WrongBody: when there is more than was promised, or it is no gzip.
        """
        if self._inflate is None:
            self._take(data)
            return
        try:
            while data and not self._inflate.eof:
                # No further than what was promised: of a bomb nothing more is ever made.
                self._take(self._inflate.decompress(data, min(_PIECE, self._left + 1)))
                data = self._inflate.unconsumed_tail
        except zlib.error as error:
            raise WrongBody(f"the gzip stream is damaged ({error})") from error
        if self._inflate.unused_data or (data and self._inflate.eof):
            raise WrongBody("there is more behind the gzip stream")

    def finish(self) -> None:
        """All has come: compare it with what was promised, and give the file its name.

        Raises:
            WrongBody: when something is missing, or has another hash.
        """
        if self._inflate is not None:
            self._take(self._inflate.flush())
            if not self._inflate.eof:
                raise WrongBody("the gzip stream is cut short")
        if self._left:
            raise WrongBody(f"{self._left} of {self._header.bytes} bytes are missing")
        if self._digest.hexdigest() != self._header.sha256:
            raise WrongBody("the voxels have another SHA256 than the order says")
        self._file.close()
        os.replace(self._partial, self._path)

    def discard(self) -> None:
        """Close it, and take away what has not become a file."""
        with contextlib.suppress(OSError):  # what is still to be written is not wanted
            self._file.close()
        with contextlib.suppress(OSError):
            self._partial.unlink(missing_ok=True)

    def _take(self, data: bytes) -> None:
        if len(data) > self._left:
            raise WrongBody(f"there are more than the {self._header.bytes} bytes that the order says")
        self._left -= len(data)
        self._digest.update(data)
        self._file.write(data)


def _locked(folder: Path) -> int | None:
    """A lock on the folder, see ``lock_folder``."""
    try:
        return lock_folder(folder)
    except BlockingIOError as error:
        raise InputError(f"Another server uses {folder} just now.", "End it, or choose another folder.") from error
