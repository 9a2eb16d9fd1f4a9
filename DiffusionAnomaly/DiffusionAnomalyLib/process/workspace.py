"""The folder of one job: what the worker reads and writes, and that nothing of it stays behind unless it is to.

The folder has a short ASCII name of its own in Slicer's temporary folder, whatever the scan is called.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from diffusion_anomaly.errors import InputError
from diffusion_anomaly.worker.protocol import LOG_FILE, Job, write_job

from ..translation import tr as _
from .writing import Writing

PREFIX = "DiffusionAnomaly-"
INPUT = "scan.nrrd"
MASK = "brain.nrrd"
RESULTS = "results"

# In a folder that is to stay. A file, because whoever cleans up later knows the folder alone.
KEPT = "kept.txt"

# Anomaly map and mask beside the scan, the pseudo-healthy reconstruction, the report, and some air.
TIMES_THE_SCAN = 4
AIR_BYTES = 50_000_000

# Of a Slicer that crashed. Long enough that no job of another running Slicer is that old.
STALE_SECONDS = 3 * 24 * 3600


class Workspace:
    """A job's folder. It is made at once and is gone after ``remove``, unless ``keep`` was called.

    >>> workspace = Workspace(parent)  # doctest: +SKIP
    >>> writing = workspace.beginScan(voxels, axes, origin, version)  # doctest: +SKIP
    >>> workspace.writeJob(method="guided", options={"steps": 10})  # doctest: +SKIP

    Args:
        parent: folder to make it in.

    Raises:
        InputError: when it cannot be made.
    """

    def __init__(self, parent: Path | str) -> None:
        try:
            Path(parent).mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent)).absolute()
        except OSError as error:
            raise InputError(
                _("No working folder can be made in {folder}: {reason}.").format(
                    folder=parent, reason=error.strerror or error
                ),
                _("Set another temporary folder in Slicer's application settings, under Paths or Cache."),
            ) from error

    @property
    def results(self) -> Path:
        """Where the worker puts its results."""
        return self.folder / RESULTS

    @property
    def log(self) -> Path:
        """The worker's own log file."""
        return self.folder / LOG_FILE

    def beginScan(
        self, voxels: np.ndarray, axes: np.ndarray, origin: np.ndarray, version: Callable[[], int], name: str = INPUT
    ) -> Writing:
        """Write a scan for the worker, in a thread.

        Args:
            voxels, axes, origin, version: see ``Writing``.
            name: of the file.

        Raises:
            InputError: when the disk has no room.
        """
        self._checkRoom(TIMES_THE_SCAN * voxels.nbytes)
        return Writing(self.folder / name, voxels, axes, origin, version)

    def writeMask(self, image: sitk.Image) -> None:
        """Write the brain mask for the worker.

        Raises:
            InputError: when the disk is full or refuses.
        """
        self._write(image, MASK)

    def writeImage(self, image: sitk.Image, name: str) -> None:
        """Write another image under this name.

        Raises:
            InputError: when the disk is full or refuses.
        """
        self._write(image, name)

    def writeJob(
        self,
        method: str,
        model: str | None,
        options: dict[str, object],
        title: str = "",
        channels: Mapping[str, str] | None = None,
    ) -> None:
        """Write what to do with them, and what the user calls the scan. Paths stay relative: the folder may be moved.

        Args:
            method, model, options, title: of the job.
            channels: files of the scan's channels by name, where there are several.

        Raises:
            InputError: when it cannot be written.
        """
        mask = MASK if (self.folder / MASK).exists() else None
        scan = "" if channels else INPUT
        write_job(Job(scan, RESULTS, method, model, mask, options, title, channels or {}), self.folder)

    def readLog(self, longest: int = 200_000) -> str:
        """The end of the worker's log; empty when there is none."""
        try:
            data = self.log.read_bytes()
        except OSError:
            return ""
        return data[-longest:].decode("utf-8", "backslashreplace")

    def keep(self) -> None:
        """Let the folder stay for good: only the user deletes it from now on.

        Raises:
            InputError: when it cannot be marked.
        """
        try:
            (self.folder / KEPT).write_text("Kept because Keep working files was chosen.\n", encoding="ascii")
        except OSError as error:
            raise InputError(
                _("The working folder {folder} cannot be written to: {reason}.").format(
                    folder=self.folder, reason=error.strerror or error
                ),
                _("Free some space, or set another temporary folder in Slicer's application settings."),
            ) from error

    def remove(self) -> None:
        """Delete the folder. A file that is still locked, as on Windows, is left for ``removeStale``."""
        _remove(self.folder)

    def _checkRoom(self, size: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < size + AIR_BYTES:
            raise InputError(
                _("{folder} has {free} MB free, and this scan needs about {needed} MB there.").format(
                    folder=self.folder.parent, free=free // 10**6, needed=(size + AIR_BYTES) // 10**6
                ),
                _("Free some space, or set another temporary folder in Slicer's application settings."),
            )

    def _write(self, image: sitk.Image, name: str) -> None:
        path = self.folder / name
        size = image.GetNumberOfPixels() * image.GetSizeOfPixelComponent() * image.GetNumberOfComponentsPerPixel()
        self._checkRoom(size)
        try:
            sitk.WriteImage(image, os.fspath(path), useCompression=False)
        except RuntimeError as error:
            raise InputError(
                _("The scan cannot be written to {path}: {reason}").format(path=path, reason=error),
                _("Free some space, or set another temporary folder in Slicer's application settings."),
            ) from error
        if path.stat().st_size < size:  # ITK does not notice every disk that is full
            raise InputError(
                _("The scan was cut short when it was written to {path}: no space left on the disk?").format(path=path),
                _("Free some space, or set another temporary folder in Slicer's application settings."),
            )


def removeStale(parent: Path | str) -> None:
    """Delete what a Slicer that crashed has left in ``parent``; folders that are to be kept stay."""
    for folder in Path(parent).glob(f"{PREFIX}*"):
        if folder.is_dir() and time.time() - folder.stat().st_mtime > STALE_SECONDS:
            _remove(folder)


def _remove(folder: Path) -> None:
    """The one place where a folder is deleted, so that a kept one never is."""
    if not (folder / KEPT).exists():
        shutil.rmtree(folder, ignore_errors=True)
