"""Scans and masks out of whatever a caller has: a path, a folder, an image, an array, several of them by contrast."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..errors import InputError
from ..text import counted
from .masks import check_mask
from .orientation import describe_grid, same_grid
from .records import BRAIN_MASK, recorded, result_in_place_of_scan
from .volume import PathLike, Scan, Volume, as_volume, binary, read_mask, read_volume

Source = PathLike | sitk.Image | np.ndarray | Volume
"""A file in a format that is read, a folder with a DICOM series, an image, or an array with its spacing."""


def read(
    source: Source | Scan | Mapping[str, Source],
    *,
    spacing: Sequence[float] | None = None,
    series: str | None = None,
    frame: int | None = None,
    title: str = "",
) -> Volume | Scan:
    """A scan, checked and ready for a detector.

    Args:
        source: a file; a folder with a DICOM series; a SimpleITK image; an array ``(slices, rows, columns)`` as
            ``sitk.GetArrayFromImage`` gives it, axial, from below, in rows from front to back and columns from right to
            left; or several of these by contrast name, on one grid.
        spacing: of an array, in mm: between columns, rows and slices ``(x, y, z)``, the reverse of its axes' order.
        series: which series of a DICOM folder, by UID or description.
        frame: which volume of a 4-D file, counted from 0.
        title: what to call it; empty for the name of its file.

    Raises:
        InputError: when it cannot be read as one grey volume a contrast, is a result of this program, or takes no such
            option; the message says why and what to do.
        MemoryExhausted: when it does not fit into memory.

    >>> read(np.zeros((4, 8, 8)), spacing=(1, 1, 3)).image.GetSpacing()
    (1.0, 1.0, 3.0)
    """
    options: dict[str, Any] = {"spacing": spacing, "series": series, "frame": frame}
    given = {name: value for name, value in options.items() if value is not None}
    if unused := sorted(given.keys() - _options_of(source)):
        raise InputError(
            f"A {unused[0]} was given for {_kind_of(source)}, which takes none.",
            "Leave it out: a spacing belongs to an array, a series or frame to a file or folder.",
        )
    if isinstance(source, Volume):
        return replace(source, title=title) if title else source
    if isinstance(source, Scan):
        renamed = {name: replace(volume, title=title) for name, volume in source.channels.items()}
        return Scan(renamed) if title else source
    if isinstance(source, Mapping):
        volumes = {}
        for name, one in source.items():
            taken = {option: given[option] for option in given.keys() & _options_of(one)}
            channel = read(one, **taken, title=title)
            if not isinstance(channel, Volume):
                raise InputError(f"The channel {name} is itself several channels.", "Give one volume a channel.")
            volumes[str(name)] = channel
        return Scan(volumes)
    if isinstance(source, (str, os.PathLike)):
        if (refusal := result_in_place_of_scan(Path(source))) is not None:
            raise refusal
        volume = read_volume(source, series=series, frame=frame)
        return replace(volume, title=title) if title else volume
    image = _image(source, spacing)
    digest = hashlib.sha256(np.ascontiguousarray(sitk.GetArrayViewFromImage(image)).tobytes()).hexdigest()
    return as_volume(image, "", digest, {}, title)


def read_brain(source: PathLike | sitk.Image | np.ndarray, like: Volume) -> sitk.Image:
    """A brain mask on a scan's grid, uint8 0/1, from a file, an image or an array of the scan's shape.

    Raises:
        InputError: when it cannot be read, is no mask or another image of a result, or has another grid than the scan.
    """
    if isinstance(source, (str, os.PathLike)):
        _check_recorded(Path(source))
        return read_mask(source, like)
    _check_unmasked(source)
    if isinstance(source, np.ndarray):
        if source.shape != like.image.GetSize()[::-1]:
            raise InputError(
                f"The brain mask has the shape {source.shape}, the scan {like.image.GetSize()[::-1]}.",
                "Give an array of the scan's shape (slices, rows, columns).",
            )
        return _binary(source, like)
    if not isinstance(source, sitk.Image):
        raise InputError(
            f"A {type(source).__name__} is no brain mask.", "Give a path, a SimpleITK image, or a NumPy array."
        )
    _check_grey(source)
    if not same_grid(source, like.image):
        raise InputError(
            f"The brain mask's grid ({describe_grid(source)}) is not the scan's ({describe_grid(like.image)}).",
            "Resample the mask onto the scan with nearest neighbours.",
        )
    return _binary(sitk.GetArrayViewFromImage(source), like)


def _kind_of(source: object) -> str:
    if isinstance(source, (str, os.PathLike)):
        return "a file"
    if isinstance(source, Mapping):
        return "channels"
    kinds = {
        np.ndarray: "an array",
        sitk.Image: "an image",
        Volume: "a scan that was read",
        Scan: "a scan that was read",
    }
    return next((name for kind, name in kinds.items() if isinstance(source, kind)), f"a {type(source).__name__}")


def _options_of(source: object) -> set[str]:
    """What `read` can be told about a source, apart from its title."""
    if isinstance(source, Mapping):
        return set().union(*map(_options_of, source.values()))
    if isinstance(source, (str, os.PathLike)):
        return {"series", "frame"}
    return {"spacing"} if isinstance(source, np.ndarray) else set()


def _check_recorded(path: Path) -> None:
    """Refuse what a record knows as another image of a result than its brain mask.

    Raises:
        InputError: naming the brain mask.
    """
    made = recorded(path)
    if made is None or made.kind == BRAIN_MASK:
        return
    brains = [name for name in made.content["files_sha256"] if re.search(r"^brain\.|_desc-brain_mask\.nii", name)]
    raise InputError(
        f"{path} is the {made.kind} of a result, no brain mask.",
        f"Give {made.folder / brains[0]}, or a mask of the brain." if brains else "Give a mask of the brain.",
    )


def _binary(values: np.ndarray, like: Volume) -> sitk.Image:
    check_mask(values, "The brain mask")
    return binary(values, like)


def _image(source: Any, spacing: Sequence[float] | None) -> sitk.Image:
    if isinstance(source, sitk.Image):
        _check_grey(source)
        return sitk.Cast(source, sitk.sitkFloat32)
    _check_unmasked(source)
    if not isinstance(source, np.ndarray):
        raise InputError(
            f"A {type(source).__name__} is no scan.",
            "Give a path, a SimpleITK image, or a NumPy array with its spacing.",
        )
    if source.ndim not in (2, 3) or source.size == 0 or source.dtype.kind not in "buif":
        raise InputError(
            f"An array of shape {source.shape} and type {source.dtype} is no scan.",
            "Give numbers as (slices, rows, columns) or (rows, columns).",
        )
    try:
        given = () if spacing is None or isinstance(spacing, (str, bytes)) else spacing
        numbers = [float(value) for value in given if not isinstance(value, (str, bytes))]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != source.ndim or not all(np.isfinite(numbers)) or min(numbers) <= 0:
        raise InputError(
            f"The spacing of an array is {spacing!r}; expected {source.ndim} numbers of mm above 0.",
            f"Give spacing=({'x, y, z' if source.ndim == 3 else 'x, y'}), the distance of columns, rows and slices.",
        )
    image = sitk.GetImageFromArray(np.ascontiguousarray(source, dtype=np.float32))
    image.SetSpacing(numbers)
    return image


def _check_unmasked(source: Any) -> None:
    """Refuse an array of which some values are masked: whether they are air or brain, nobody knows.

    Raises:
        InputError: with their number.
    """
    if np.ma.is_masked(source):
        raise InputError(
            f"The masked array lacks {counted(int(np.ma.count_masked(source)), 'value')}.",
            "Say what stands there, such as array.filled(0), and give a mask of the brain as brain=.",
        )


def _check_grey(image: sitk.Image) -> None:
    """Refuse an image in memory that is no grey volume.

    Raises:
        InputError: for colour, vectors, complex numbers, and other than 2 or 3 dimensions.
    """
    is_complex = image.GetPixelID() in (sitk.sitkComplexFloat32, sitk.sitkComplexFloat64)
    if image.GetNumberOfComponentsPerPixel() > 1 or is_complex or image.GetDimension() not in (2, 3):
        raise InputError(
            f"The image has {image.GetDimension()} dimensions and pixels of {image.GetPixelIDTypeAsString()}; "
            "expected 2 or 3 dimensions and one grey value.",
            "Give one grey volume.",
        )
