"""From a path to a volume: look through the headers, choose a series and a volume, then read each file of it once.

Header and pixels of a file, and its part of the hash, come from that one reading: a file that somebody replaces
meanwhile is an error, never half the old and half the new.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ...errors import InputError
from ...text import counted
from ..content import check_size
from .decompression import Decompressor
from .headers import Header, parse, read_bytes, silence
from .kinds import check_kinds
from .pixels import Pixels
from .planes import HEADER_TAGS, PROJECTIONS, Plane, frames_of, is_multiframe, plane_of, planes_of
from .recognition import DicomScan
from .series import DicomFile, choose_series, count_siblings, find_series, read_one
from .stack import choose_volume, place

# What all images of one volume have in common, and what it is called in messages. Names are compared, never shown.
_COMMON = {
    "PatientID": "patients",
    "PatientName": "patients",
    "PatientBirthDate": "patients",
    "StudyInstanceUID": "studies",
    "FrameOfReferenceUID": "frames of reference",
    "Modality": "modalities",
}


def read(path: Path, series: str | None, frame: int | None) -> DicomScan:
    """`read_dicom` of this package.

    Raises:
        InputError: no DICOM, several series, or images that are no regular stack of grey slices.
        MemoryExhausted: when it does not fit into memory.
    """
    with silence(path):
        warnings: list[str] = []
        if not path.is_dir() and (file := _single(path)) is not None:
            files, shown = [file], path
            warnings = _left_out(file)
        else:
            shown = path if path.is_dir() else path.parent
            chosen, warnings = choose_series(shown, *find_series(shown, HEADER_TAGS), series)
            files = chosen.files
            # Messages about one file name that file.
            shown = files[0].path if len(files) == 1 else shown
        with Decompressor() as decompressor:
            return _read_files(files, frame, shown, warnings, decompressor)


def _single(path: Path) -> DicomFile | None:
    """The only file to read; None for the directory of a medium, whose files lie around it."""
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes).", "Copy or download it again.")
    file = read_one(path, HEADER_TAGS)
    if file is None:
        raise InputError(f"{path} is no DICOM file.", "Give the scan itself.")
    if file.fault:
        raise InputError(f"{path} {file.fault}.", "Copy or export it again.")
    if file.header is None:
        if path.name.upper() == "DICOMDIR":
            return None
        raise InputError(f"{path} is a DICOM object without an image of the body.", "Give the scan itself.")
    return file


def _left_out(file: DicomFile) -> list[str]:
    """A warning where the only file to read is one slice of several that lie beside it."""
    assert file.header is not None
    if file.header.code("Modality") in PROJECTIONS or frames_of(file.header) > 1:  # whole by itself
        return []
    if not (siblings := count_siblings(file)):
        return []
    return [
        f"{file.path.name} is one image of a series; its folder holds {counted(siblings, 'more image')} of it, which "
        "were not read. Give the folder to read the whole scan."
    ]


def _read_files(
    files: Sequence[DicomFile], frame: int | None, where: Path, warnings: list[str], decompressor: Decompressor
) -> DicomScan:
    headers = [file.header for file in files if file.header is not None]
    _check_common(headers, where)
    multiframe = [is_multiframe(header) for header in headers]
    if any(multiframe) and not all(multiframe):
        odd = headers[multiframe.index(sum(multiframe) * 2 < len(multiframe))]
        raise InputError(
            f"{where} mixes files of one image and of many in one series, such as {odd.path.name}.",
            "Keep the ones of one kind in a folder.",
        )
    if all(multiframe):
        _check_concatenation(headers, where)
        reader = _Reader(decompressor, kept=True)
        planes = [plane for header in headers for plane in reader.open(header.path).planes]
    else:
        reader = _Reader(decompressor, alone=len(headers) == 1)
        planes = [plane_of(header, alone=len(headers) == 1) for header in headers]
    stack, notes = choose_volume(planes, frame, where, reader.values)
    different = check_kinds(stack, where)
    geometry, more = place(stack, where)
    lost = [] if any(multiframe) else [*_missing_at_the_ends(headers, len(stack)), *_missing_between(headers, stack)]
    warnings = [*warnings, *stack[0].warnings, *notes, *different, *more, *lost]
    values = np.empty(0, np.float32)
    digest = hashlib.sha256()
    read: dict[Path, None] = {}
    for index, plane in enumerate(stack):
        file = reader.open(plane.path)
        if file.planes[plane.frame] != plane:
            raise InputError(f"{plane.path} was changed while it was read.", "Read it again when it is complete.")
        if plane.path not in read:
            read[plane.path] = None
            digest.update(file.content)
        image = file.pixels.values(plane)
        if index == 0:  # its size is proved now
            check_size((*image.shape[::-1], len(stack)), image.dtype, str(where))
            values = np.empty((len(stack), *image.shape), np.float32)
        values[index] = image
        warnings.extend(file.pixels.warnings)
    stated = {"modality": headers[0].text("Modality"), "description": headers[0].text("SeriesDescription")}
    return DicomScan(
        geometry.on(sitk.GetImageFromArray(values)),
        list(read),
        {name: text for name, text in stated.items() if text},
        tuple(dict.fromkeys(warnings)),
        digest.hexdigest(),
        _identity(headers[0]),
        tuple(stack),
    )


def _identity(header: Header) -> dict[str, str]:
    """Digests of what tells patients, studies and frames of reference apart, where it is stated."""
    stated = {keyword: _plain(header, keyword) for keyword in _COMMON if keyword != "Modality"}
    return {keyword: hashlib.sha256(value).hexdigest() for keyword, value in stated.items() if value}


def _plain(header: Header, keyword: str) -> bytes:
    return header.raw(keyword).strip(b" \0^").upper()


@dataclass(frozen=True)
class _Opened:
    """A file as it was at one moment."""

    content: bytes
    planes: list[Plane]
    pixels: Pixels


class _Reader:
    """Reads files whole.

    Args:
        decompressor: for compressed images.
        kept: whether they hold many frames, and are read once for all of them.
        alone: whether the only file is a single image.
    """

    def __init__(self, decompressor: Decompressor, kept: bool = False, alone: bool = False) -> None:
        self._decompressor, self._kept, self._alone = decompressor, kept, alone
        self._opened: dict[Path, _Opened] = {}

    def open(self, path: Path) -> _Opened:
        """A file's bytes, planes and pixels.

        Raises:
            InputError: when it is damaged, or what it holds cannot be read.
            OSError: when it cannot be read.
        """
        if path in self._opened:
            return self._opened[path]
        content = read_bytes(path)
        header = parse(content, path)
        planes = planes_of(header) if self._kept else [plane_of(header, self._alone)]
        opened = _Opened(content, planes, Pixels(header, self._decompressor))
        if self._kept:
            self._opened[path] = opened
        return opened

    def values(self, plane: Plane) -> np.ndarray:
        """The values of an image."""
        return self.open(plane.path).pixels.values(plane)


def _check_common(headers: Sequence[Header], where: Path) -> None:
    """Refuse images of different patients, studies or frames of reference under one series UID."""
    for keyword, meaning in _COMMON.items():
        first: tuple[bytes, Path] | None = None
        for header in headers:
            value = _plain(header, keyword)
            if value and first and value != first[0]:
                raise InputError(
                    f"{where} mixes images of different {meaning} in one series: {first[1].name} and "
                    f"{header.path.name} ({keyword}).",
                    "Put the images of each into a folder of its own.",
                )
            if value and not first:
                first = value, header.path


def _missing_at_the_ends(headers: Sequence[Header], slices: int) -> list[str]:
    """Warnings where the first or last slices of a series may be lost, which leaves no gap between positions.

    Args:
        headers: of the series' files, an image each.
        slices: of the volume that was chosen.
    """
    if len(headers) == 1:
        return []
    numbers = [number for header in headers if (number := header.hint("InstanceNumber")) is not None]
    stated = {"ImagesInAcquisition": len(headers), "NumberOfSlices": slices}
    warnings = []
    if len(numbers) == len(headers) and min(numbers) > 1:
        warnings.append(
            f"The numbers of the series' images begin at {min(numbers):g} (InstanceNumber); are the first ones missing?"
        )
    for keyword, there in stated.items():
        expected = max((header.hint(keyword) or 0.0 for header in headers), default=0.0)
        if expected > there:
            warnings.append(
                f"The series states {counted(round(expected), 'image')} ({keyword}), {there} are there; are slices "
                "missing at an end?"
            )
    return warnings


def _missing_between(headers: Sequence[Header], stack: Sequence[Plane]) -> list[str]:
    """Warnings where every second or third slice may be lost: numbers and distances then are regular, and too wide.

    Args:
        headers: of the series' files, an image each.
        stack: the volume that was chosen.
    """
    numbers = np.array(sorted({header.hint("InstanceNumber") or 0.0 for header in headers}))
    steps = np.diff(numbers)
    if len(stack) < 3 or len(numbers) < len(headers) or steps.min() != steps.max() or steps[0] < 2:
        return []
    first, step = stack[0], int(steps[0])
    distance = float(first.normal @ np.subtract(stack[-1].position, first.position)) / (len(stack) - 1)
    expected = first.distance or first.thickness
    # Slices of an echo that was kept alone are numbered so too, and touch each other.
    if expected and distance < 0.9 * step * expected:
        return []
    return [
        f"The {len(stack)} images are numbered in steps of {step} (InstanceNumber) and lie {distance:.3g} mm apart; "
        f"are {(step - 1) * (len(stack) - 1)} slices between them missing?"
    ]


def _check_concatenation(headers: Sequence[Header], where: Path) -> None:
    """Refuse a multi-frame object that was cut into several files of which one is missing."""
    parts = [header for header in headers if "ConcatenationUID" in header]
    if not parts:
        return
    numbers = sorted(int(header.hint("InConcatenationNumber") or 0) for header in parts)
    total = int(max(header.hint("InConcatenationTotalNumber") or 0 for header in parts)) or max(numbers)
    if len({header.code("ConcatenationUID") for header in parts}) > 1 or len(parts) < len(headers):
        raise InputError(f"{where} holds parts of several multi-frame images.", "Keep those of one in a folder.")
    if numbers != list(range(1, total + 1)):
        raise InputError(
            f"{where} holds the parts {', '.join(map(str, numbers))} of a multi-frame image of {total} parts.",
            "Give the folder with all parts: export the series again.",
        )
