"""Where voxels lie, by one rule for every format.

The spacing is the length of the columns of the matrix that leads from indices to millimetres, the direction is those
columns at length 1. They must be finite, at right angles, and of a length that a scan of a body can have. Nothing is
mended in silence: a reader that has to settle something says so in a volume's ``warnings``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from ..errors import InputError

# Cosine of the angle between two axes. Headers in float32 or in decimals of seven digits are far below it; a tilt that
# shifts the far side of a head by a fifth of a millimetre is as large.
MOST_SHEAR = 1e-3
LEAST_SPACING, MOST_SPACING = 0.05, 50.0
# Farther from the scanner's centre than anything can be. Beyond it numbers are damaged, or in another unit.
FARTHEST_MM = 1e5


@dataclass(frozen=True)
class Geometry:
    """Spacing, origin and direction of a volume in ITK's world: LPS, mm.

    Attributes:
        spacing: between neighbouring columns, rows and slices ``(x, y, z)``.
        origin: of the centre of the first voxel.
        direction: the axes in columns, row by row, as ``sitk.Image.SetDirection`` takes them.
    """

    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, ...]

    def on(self, image: sitk.Image) -> sitk.Image:
        """The 3-D image itself, placed here."""
        image.SetSpacing(self.spacing)
        image.SetOrigin(self.origin)
        # ITK's inverse takes long over numbers next to 0, and prints them.
        image.SetDirection([0.0 if abs(part) < 1e-12 else part for part in self.direction])
        return image


def geometry_of(columns: np.ndarray, origin: np.ndarray, what: str, fields: str = "the header") -> Geometry:
    """Geometry out of a matrix that leads from voxel indices to LPS millimetres, checked.

    Args:
        columns: ``(3, 3)``; column k is the step from a voxel to the next along axis k, in mm.
        origin: ``(3,)``, centre of the first voxel in mm.
        what: the file or folder, for messages.
        fields: what stated these numbers, for messages, such as "the sform".

    Raises:
        InputError: when a number is not finite, a spacing is impossible, or two axes are not at right angles.

    >>> geometry_of(np.diag([-1.0, -1.0, 5.0]), np.zeros(3), "scan.nii").spacing
    (1.0, 1.0, 5.0)
    """
    columns, origin = np.asarray(columns, np.float64), np.asarray(origin, np.float64)
    if not (np.isfinite(columns).all() and np.isfinite(origin).all()):
        raise InputError(
            f"{what}: {fields} holds numbers that are not finite, so nobody knows where its voxels lie.",
            "Export or convert the scan again.",
        )
    spacing = np.linalg.norm(columns, axis=0)
    check_spacing(spacing, what, fields)
    if np.abs(origin).max() > FARTHEST_MM:
        raise InputError(
            f"{what}: {fields} puts the first voxel {np.abs(origin).max():.3g} mm from the scanner's centre, "
            "where nothing can be.",
            "Export or convert the scan again.",
        )
    direction = columns / spacing
    shear = np.abs(direction.T @ direction - np.eye(3)).max()
    if shear > MOST_SHEAR:
        raise InputError(
            f"{what}: the axes in {fields} are not at right angles (sheared by {shear:.2g}).",
            "Resample it to straight axes, for example by hardening its transform in 3D Slicer.",
        )
    x, y, z = (float(v) for v in spacing)
    i, j, k = (float(v) for v in origin)
    return Geometry((x, y, z), (i, j, k), tuple(float(v) for v in direction.ravel()))


def check_spacing(spacing: np.ndarray, what: str, fields: str = "the header") -> None:
    """Refuse distances between voxels that no scan of a body has.

    Args:
        spacing: in mm, any number of axes.
        what: the file or folder, for messages.
        fields: what stated them, for messages.

    Raises:
        InputError: when one is not finite, or not from 0.05 to 50 mm.
    """
    spacing = np.asarray(spacing, np.float64)
    if np.isfinite(spacing).all() and ((spacing >= LEAST_SPACING) & (spacing <= MOST_SPACING)).all():
        return
    stated = " x ".join(f"{value:.4g}" for value in spacing)
    raise InputError(
        f"{what}: {fields} states a voxel spacing of {stated} mm; expected {LEAST_SPACING:g} to {MOST_SPACING:g} mm.",
        "Correct the spacing in the file's header; is it in another unit, or lost?",
    )
