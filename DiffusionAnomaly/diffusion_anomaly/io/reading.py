"""What a reader of a format gives: grey voxels, where they lie, and what had to be settled."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import SimpleITK as sitk

from ..errors import InputError
from .geometry import Geometry

# Numbers in headers. Python's own rules take `1_0`, `²` and `infinity` for some too.
DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
INTEGER = re.compile(r"[+-]?\d+", re.ASCII)


@dataclass(frozen=True)
class GridFields:
    """A header's own statement of its grid, carried over unchanged into results of the same format.

    Attributes:
        kind: "nifti" or "nrrd".
        dimension: of the file, without frames.
        content: NIfTI-1: pixdim[0..3], xyzt_units, and qform_code to srow_z, little-endian; NRRD: lines.
    """

    kind: str
    dimension: int
    content: bytes


@dataclass(frozen=True)
class Reading:
    """A scan file as read.

    Attributes:
        values: float32 ``(slices, rows, columns)``, one slice for a 2-D file.
        geometry: of the voxels.
        dimension: 2 or 3, what the file had, frames apart.
        metadata: as in a ``Volume``.
        warnings: as in a ``Volume``.
        grid_fields: where results can keep them.
    """

    values: np.ndarray
    geometry: Geometry
    dimension: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    grid_fields: GridFields | None = None

    def image(self) -> sitk.Image:
        return self.geometry.on(sitk.GetImageFromArray(self.values))


def as_float32(values: np.ndarray, slope: float = 1.0, intercept: float = 0.0) -> np.ndarray:
    """Numbers of any type and byte order as float32, scaled in double precision; a plane at a time, to save memory.

    >>> as_float32(np.arange(3, dtype=">i2").reshape(1, 1, 3), 0.5, 1).tolist()
    [[[1.0, 1.5, 2.0]]]
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if (slope, intercept) == (1.0, 0.0):
            return np.ascontiguousarray(values, np.float32)
        scaled = np.empty(values.shape, np.float32)
        for plane, target in zip(values, scaled, strict=True):
            target[...] = plane.astype(np.float64) * slope + intercept
    return scaled


class SeveralVolumes(InputError):  # noqa: N818 - reads as what was found
    """A 4-D file of which no volume was chosen."""


def choose_frame(frame: int | None, frames: int, what: object) -> int:
    """The frame to read out of `frames`.

    Raises:
        SeveralVolumes: when there are several and none is chosen.
        InputError: when the chosen one does not exist.
    """
    choice = (
        f"Choose one with --frame, from 0 to {frames - 1} (in Python read(…, frame=0))."
        if frames > 1
        else "Leave out the frame."
    )
    if frame is None and frames > 1:
        raise SeveralVolumes(f"{what} is 4-D: it holds {frames} volumes.", choice)
    if frame is not None and not 0 <= frame < frames:
        raise InputError(f"{what} has no frame {frame}: it holds {frames} volume{'s' * (frames > 1)}.", choice)
    return frame or 0


def not_grey(what: str, kind: str, components: int) -> InputError:
    """The error for voxels of several values.

    Args:
        what: the file.
        kind: what its header calls them.
        components: values a voxel.
    """
    if "color" in kind or "RGB" in kind:
        name = "a colour image"
    elif components in (3, 4):
        name = "an image of vectors or a colour image"
    else:
        name = "an image of vectors"
    return InputError(
        f"{what} is {name} ({components} values a pixel); expected one grey value.",
        "Give the scan itself, or convert it to one grey channel.",
    )


def complex_voxels(what: str) -> InputError:
    """The error for complex voxels."""
    return InputError(f"{what} holds complex numbers; expected one grey value a voxel.", "Give the magnitude image.")
