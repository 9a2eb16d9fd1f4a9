"""Which way a scan's axes point, and whether two scans share one grid.

Volumes come with any of 48 axis orders and signs, and obliquely. The engine never resamples to undo that: it
looks at the same voxels through a transposed and reversed numpy view, so nothing is copied and nothing moves.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np
import SimpleITK as sitk

# Corners of two grids may lie apart by this share of the smallest voxel edge and still be one grid. NIfTI's
# float32 moves the corners of a head by up to 0.00002 mm, DICOM's and other tools' decimals by more; a twentieth
# of a voxel is nothing that a mask could show.
SAME_GRID_TOLERANCE = 0.05


@dataclass(frozen=True)
class Orientation:
    """How a 3-D image's own axes serve as canonical slice, row and column.

    Canonical is axial, in ITK's LPS world: slices run inferior to superior, rows anterior to posterior,
    columns right to left. An image that is a single coronal or sagittal slice keeps its own plane, rows
    running superior to inferior, because its one slice is the only one there is.

    Attributes:
        axes: Image axis (0 is the fastest, i) that serves as slice, row and column.
        flipped: Whether that axis has to be read backwards.

    >>> axial = sitk.Image(4, 5, 6, sitk.sitkUInt8)
    >>> Orientation.of(axial)
    Orientation(axes=(2, 1, 0), flipped=(False, False, False))
    """

    axes: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]

    @classmethod
    def of(cls, image: sitk.Image) -> Orientation:
        """Orientation of a 3-D image: the assignment of axes that is closest to its direction matrix."""
        direction = np.array(image.GetDirection()).reshape(3, 3)
        # nearest[p] is the image axis closest to the world axis p (0 left, 1 posterior, 2 superior).
        nearest = max(permutations(range(3)), key=lambda axes: sum(abs(direction[p, axes[p]]) for p in range(3)))
        world = [(2, 1), (1, 1), (0, 1)]  # world axis and sign of slice, row and column
        thin = [axis for axis in range(3) if image.GetSize()[axis] == 1]
        if len(thin) == 1 and thin[0] == nearest[1]:  # one coronal slice
            world = [(1, 1), (2, -1), (0, 1)]
        elif len(thin) == 1 and thin[0] == nearest[0]:  # one sagittal slice
            world = [(0, 1), (2, -1), (1, 1)]
        slice_axis, row_axis, column_axis = (nearest[p] for p, _ in world)
        backwards = [bool(direction[p, nearest[p]] * sign < 0) for p, sign in world]
        return cls((slice_axis, row_axis, column_axis), (backwards[0], backwards[1], backwards[2]))

    @classmethod
    def stored(cls, image: sitk.Image) -> Orientation:
        """The image as its file holds it, whatever its header says: a film is stored as it is looked at.

        The last axis counts slices, or in an image of one slice the axis that has that one.
        """
        slices = max(range(3), key=lambda axis: (image.GetSize()[axis] == 1, axis))
        columns, rows = (axis for axis in range(3) if axis != slices)
        return cls((slices, rows, columns), (False, False, False))

    def view(self, array: np.ndarray) -> np.ndarray:
        """Canonical (slice, row, column) view of an array as SimpleITK gives it (k, j, i). Copies nothing."""
        steps = tuple(slice(None, None, -1) if backwards else slice(None) for backwards in self.flipped)
        return array.transpose([2 - axis for axis in self.axes])[steps]

    def spacing(self, image: sitk.Image) -> tuple[float, float, float]:
        """Distance in mm between slices, rows and columns."""
        spacing = image.GetSpacing()
        return spacing[self.axes[0]], spacing[self.axes[1]], spacing[self.axes[2]]


def describe_grid(image: sitk.Image) -> str:
    """One line on an image's grid, for messages: size, spacing, origin, direction."""

    def join(values: tuple[float, ...], separator: str = ", ") -> str:
        return separator.join(f"{value:.5g}" for value in values)

    return (
        f"{'x'.join(map(str, image.GetSize()))} voxels of {join(image.GetSpacing(), ' x ')} mm, "
        f"origin ({join(image.GetOrigin())}), direction ({join(image.GetDirection())})"
    )


def same_grid(first: sitk.Image, second: sitk.Image) -> bool:
    """Whether two images have the same voxels in the same places, up to the rounding of file headers."""
    if first.GetSize() != second.GetSize():
        return False
    size = first.GetSize()
    corners = [
        [(n - 1) * int(bit) for n, bit in zip(size, np.binary_repr(c, len(size)), strict=True)]
        for c in range(2 ** len(size))
    ]
    apart = max(
        float(
            np.linalg.norm(
                np.subtract(first.TransformIndexToPhysicalPoint(corner), second.TransformIndexToPhysicalPoint(corner))
            )
        )
        for corner in corners
    )
    edge = min(*first.GetSpacing(), *second.GetSpacing())
    return apart <= SAME_GRID_TOLERANCE * edge
