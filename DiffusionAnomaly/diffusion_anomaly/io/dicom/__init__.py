"""DICOM: a file, or a folder with a series, as one volume.

Headers and pixels are read with pydicom, whose faults are exceptions, and each number of a header is checked before
anything is built on it. What is a regular stack of grey slices is read; all else is refused by name, or asked for.

pydicom is imported with the first DICOM file: scans in other formats start without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .recognition import DicomScan, is_dicom

if TYPE_CHECKING:
    from .series import Series

__all__ = ["DicomScan", "is_dicom", "read_dicom", "series_of"]


def read_dicom(path: Path, series: str | None = None, frame: int | None = None) -> DicomScan:
    """Read a DICOM file, or one series of a folder and the folders in it, as a float32 volume.

    Args:
        path: a file, a folder, or the DICOMDIR of a medium.
        series: series instance UID, or description where only one series has it. Needed when there are several.
        frame: which volume, when there are several images at each position.

    Raises:
        InputError: no DICOM, several series, or images that are no regular stack of grey slices.
        MemoryExhausted: when it does not fit into memory.
    """
    from .reading import read

    return read(Path(path), series, frame)


def series_of(folder: Path) -> list[Series]:
    """The DICOM series of a folder and the folders in it, in order of their descriptions.

    Raises:
        InputError: when there are too many files for one scan.
    """
    from .headers import silence
    from .planes import HEADER_TAGS
    from .series import find_series

    with silence(folder):
        found, _, _ = find_series(folder, HEADER_TAGS)
    return sorted(found.values(), key=lambda series: (series.description, series.uid))
