"""Scans in, results out: the only place where the engine reads and writes images.

A scan becomes one float32 volume a channel in its file's own orientation, checked and finite; a result goes back onto
exactly the same grid. What a network reads of it is the duty of `preprocessing`.

>>> import tempfile
>>> path = Path(tempfile.mkdtemp()) / "scan.nrrd"
>>> sitk.WriteImage(sitk.Image(4, 4, 4, sitk.sitkInt16), str(path))
>>> read_volume(path).image.GetPixelIDTypeAsString()
'32-bit float'
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk

from ..errors import InputError, MemoryExhausted
from ..text import printable
from . import dicom
from .dicom import read_dicom
from .files import whole_file
from .formats import read_scan, suffix_of
from .geometry import MOST_SHEAR, geometry_of
from .masks import check_mask
from .orientation import describe_grid, same_grid
from .reading import GridFields, SeveralVolumes
from .writing import write_image

if TYPE_CHECKING:
    from .dicom.planes import Plane

PathLike = str | os.PathLike[str]
WRITABLE = (".nii.gz", ".nii", ".nrrd", ".mha")

BACKGROUND_SHARE = 0.2  # of voxels that are no number, from which on they are a background


@dataclass(frozen=True)
class Volume:
    """A scan as the engine works on it.

    Attributes:
        image: 3-D, float32, finite, in the file's own orientation. A 2-D file is one slice 1 mm thick.
        source: The path as given.
        sha256: Of the bytes of all its files (DICOM: in slice order), in hexadecimal.
        dimension: 2 or 3, what the file had (3 for one frame of a 4-D file).
        non_finite: Number of voxels that were NaN or infinite and now hold the smallest finite value, or where they
            are the background, a little less.
        metadata: `modality` and `description`, where the file states them. Nothing that names a patient.
        title: What the user calls it; empty where nobody calls it otherwise than its file.
        warnings: What reading it had to settle, such as header fields that contradict each other; for the user to see.
        grid_fields: How its header writes its grid, for results in the same format.
        identity: Of DICOM, digests that tell patients, studies and frames of reference apart. Never written anywhere.
        alignment: How it came onto another channel's grid, JSON-ready; empty where it lies on its own.
        planes: Of DICOM, the image that each slice was read from; empty for other formats.
    """

    image: sitk.Image
    source: str
    sha256: str
    dimension: int
    non_finite: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    title: str = ""
    warnings: tuple[str, ...] = ()
    grid_fields: GridFields | None = None
    identity: Mapping[str, str] = field(default_factory=dict, repr=False)
    alignment: Mapping[str, Any] = field(default_factory=dict)
    planes: tuple[Plane, ...] = field(default=(), repr=False)

    @property
    def name(self) -> str:
        """What to call it in a sentence or a heading."""
        return self.title or printable(Path(self.source).name) or "scan"


@dataclass(frozen=True)
class Scan:
    """One or more grey volumes by contrast name, on one grid.

    The first channel is the reference: it gives the grid, and what is said of "the scan" is said of it.

    Attributes:
        channels: by contrast name, the reference first.
        covered: uint8, 1 where every channel has voxels of its own; None where all have everywhere.

    Raises:
        InputError: when there is no channel, or one has another grid than the first.
    """

    channels: Mapping[str, Volume]
    covered: sitk.Image | None = None

    def __post_init__(self) -> None:
        if not self.channels:
            raise InputError("The scan has no channel.", "Give at least one volume.")
        for name, volume in self.channels.items():
            if not same_grid(volume.image, self.reference.image):
                raise InputError(
                    f"The channel {name} has another grid than {next(iter(self.channels))}. "
                    f"{name}: {describe_grid(volume.image)}. The first: {describe_grid(self.reference.image)}.",
                    "Resample all channels onto the first.",
                )

    @property
    def reference(self) -> Volume:
        return next(iter(self.channels.values()))

    @property
    def images(self) -> list[sitk.Image]:
        return [volume.image for volume in self.channels.values()]


def read_volume(path: PathLike, *, series: str | None = None, frame: int | None = None) -> Volume:
    """Read a scan: NIfTI, Analyze, MGH, NRRD, MetaImage, a grey picture, or DICOM: a file, or a folder with one series.

    Args:
        path: File or folder.
        series: Series instance UID or description, for a DICOM folder with several series.
        frame: Which volume of a 4-D scan, counted from 0.

    Raises:
        InputError: when it cannot be read as one grey volume; the message says why and what to do.
        MemoryExhausted: when it does not fit into memory.
    """
    path = Path(path)
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.ELOOP:
            raise InputError(f"{printable(path)} is a link that leads back to itself.", "Check the path.") from error
        reason = "" if isinstance(error, FileNotFoundError) else f" ({getattr(error, 'strerror', None) or error})"
        raise InputError(f"There is no file or folder {printable(path)}{reason}.", "Check the path.") from error
    is_folder = stat.S_ISDIR(mode)
    if not is_folder and not stat.S_ISREG(mode):  # a pipe would wait for its other end for ever
        raise InputError(f"{printable(path)} is no regular file.", "Give a file with a scan, or a DICOM folder.")
    if not os.access(path, os.R_OK):
        raise InputError(f"{printable(path)} may not be read: no permission.", "Ask its owner for read permission.")
    if is_folder or dicom.is_dicom(path):
        if series is not None and not is_folder and path.name.upper() != "DICOMDIR":
            raise InputError(
                f"{printable(path)} is a file; a series ({series}) can be chosen in a DICOM folder only.",
                "Leave out the series, or give the folder.",
            )
        scan = read_dicom(path, series, frame)
        volume = as_volume(scan.image, os.fspath(path), scan.sha256, scan.metadata, warnings=scan.warnings)
        return replace(volume, identity=scan.identity, planes=scan.planes)
    if series is not None:
        raise InputError(
            f"{printable(path)} is a file; a series ({series}) can be chosen in a DICOM folder only.",
            "Leave out the series, or give the folder.",
        )
    source = os.fspath(path)
    try:
        reading, sha256 = read_scan(path, frame)
        volume = as_volume(reading.image(), source, sha256, reading.metadata)
    except MemoryError as error:
        raise MemoryExhausted(f"{printable(path)} does not fit into memory.", "Close other programs.") from error
    return replace(volume, dimension=reading.dimension, warnings=reading.warnings, grid_fields=reading.grid_fields)


def as_volume(
    image: sitk.Image,
    source: str,
    sha256: str,
    metadata: Mapping[str, str],
    title: str = "",
    warnings: tuple[str, ...] = (),
) -> Volume:
    """A 2-D or 3-D float32 image as a volume, its spacing and its values checked.

    Raises:
        InputError: when the spacing is impossible, or no value is finite.
    """
    dimension = image.GetDimension()
    if dimension == 2:
        image = sitk.JoinSeries([image])
    what = printable(source) if source else "The image"
    direction = np.reshape(image.GetDirection(), (3, 3))
    # Direction and spacing apart: a direction that scales would hide in their product.
    if not np.allclose(np.linalg.norm(direction, axis=0), 1.0, atol=MOST_SHEAR):
        raise InputError(
            f"{what}: its direction matrix is no rotation: it scales.", "Export or convert the scan again."
        )
    geometry_of(direction * image.GetSpacing(), np.array(image.GetOrigin()), what)
    image, non_finite = _finite(image, what)
    return Volume(image, source, sha256, dimension, non_finite, metadata, title, warnings)


def read_only_volume(path: PathLike) -> Volume:
    """The one volume of a file, where nobody can choose among several.

    Raises:
        InputError: as `read_volume`.
    """
    try:
        return read_volume(path)
    except SeveralVolumes as error:
        raise InputError(error.what, "Save the one that is meant as a 3-D file of its own.") from error


def read_mask(path: PathLike, like: Volume) -> sitk.Image:
    """Read a mask or label map on a scan's grid.

    Returns:
        uint8, 1 where the file is above 0.5 (any label, or a probability of more than a half), else 0; on
        exactly the scan's grid.

    Raises:
        InputError: as `read_volume`, and when it is no mask or has another grid than the scan.
    """
    mask = read_only_volume(path)
    if not same_grid(mask.image, like.image):
        raise InputError(
            f"The mask {path} has another grid than the scan {like.source}. "
            f"Mask: {describe_grid(mask.image)}. Scan: {describe_grid(like.image)}.",
            "Resample the mask onto the scan with nearest neighbours, or give the mask drawn on this scan.",
        )
    check_mask(sitk.GetArrayViewFromImage(mask.image), f"The mask {path}")
    return binary(sitk.GetArrayViewFromImage(mask.image), like)


def binary(values: np.ndarray, like: Volume) -> sitk.Image:
    """uint8 on a scan's grid, 1 where ``values`` ``(slices, rows, columns)`` are above 0.5."""
    mask = sitk.GetImageFromArray((values > 0.5).astype(np.uint8))
    mask.CopyInformation(like.image)
    return mask


def read_anomaly_map(path: PathLike) -> Volume:
    """Read an anomaly map that the engine wrote.

    Raises:
        InputError: as `read_volume`, and when there are values that are negative or not finite, which an anomaly map
            never has.
    """
    anomaly_map = read_only_volume(path)
    if anomaly_map.non_finite:
        raise InputError(
            f"{path} is no whole anomaly map: {anomaly_map.non_finite} of its values are NaN or infinite, and could be "
            "its highest.",
            "Give the map that `detect` wrote, or put 0 where there is no score.",
        )
    lowest = float(sitk.GetArrayViewFromImage(anomaly_map.image).min())
    if lowest < 0:
        raise InputError(
            f"{path} is no anomaly map: its lowest value is {lowest:.4g}, the anomaly score is never below 0.",
            "Give an anomaly map that `detect` wrote.",
        )
    return anomaly_map


def write_like(values: np.ndarray | sitk.Image, volume: Volume, path: PathLike, *, dtype: np.typing.DTypeLike) -> None:
    """Write values on a scan's grid, whole or not at all.

    The grid is the scan's bit for bit, as it was when the scan was read: read back, a file in the scan's own format has
    the same size, spacing, origin and direction; MetaImage keeps every grid exactly; NIfTI rounds foreign ones to
    float32. A 2-D scan gets a 2-D file.

    Args:
        values: (slices, rows, columns) in the order of `sitk.GetArrayFromImage(volume.image)`, or an image.
        volume: The scan.
        path: Ends in .nii.gz, .nii, .nrrd or .mha. An existing file is replaced.
        dtype: What is stored, for example np.float32 or np.uint8.

    Raises:
        InputError: for another suffix, or when the file cannot be written.
    """
    path = Path(path)
    if suffix_of(path) not in WRITABLE:
        raise InputError(f"{path.name} has no suffix that can be written.", f"Use one of {', '.join(WRITABLE)}.")
    array = sitk.GetArrayViewFromImage(values) if isinstance(values, sitk.Image) else values
    if array.shape != volume.image.GetSize()[::-1]:
        raise ValueError(f"values have shape {array.shape}, the scan has {volume.image.GetSize()[::-1]}")
    with whole_file(path) as partial, open(partial, "wb") as file:
        stored = np.asarray(array, dtype=dtype)
        write_image(file, suffix_of(path), stored, volume.image, volume.dimension, volume.grid_fields)


def _finite(image: sitk.Image, what: str) -> tuple[sitk.Image, int]:
    """The image with NaN and infinite voxels at its smallest finite value, and their number.

    Where they are the background, of a stripped scan for example, they get a value of their own below that.
    """
    view = sitk.GetArrayViewFromImage(image)
    non_finite = sum(plane.size - int(np.count_nonzero(np.isfinite(plane))) for plane in view)
    if not non_finite:
        return image, 0
    if non_finite == view.size:
        raise InputError(
            f"{what} holds no finite value: all {non_finite} voxels are NaN or infinite.",
            "Export the scan again.",
        )
    finite = np.isfinite(view)
    lowest = float(view.min(initial=np.inf, where=finite))  # in double precision, which holds any difference
    if non_finite >= BACKGROUND_SHARE * view.size:
        below = lowest - (float(view.max(initial=-np.inf, where=finite)) - lowest) / 1000
        lowest = max(below, float(np.finfo(view.dtype).min))
    array = np.where(finite, view, view.dtype.type(lowest))
    mended = sitk.GetImageFromArray(array)
    mended.CopyInformation(image)
    return mended, non_finite
