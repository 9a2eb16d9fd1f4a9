"""What of a scan is looked at: the brain, the head, the space inside the skull, or everything, as the package says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from ..models.declaration import BRAIN, IMAGE, REGIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..io.volume import Volume
    from ..preprocessing.slices import SliceStack
    from .brain import BrainFinder


def find_region(
    region: str, volume: Volume, brain: BrainFinder, warn: Callable[[str], None] = lambda message: None
) -> sitk.Image:
    """A scan's region.

    Args:
        region: one of ``declaration.REGIONS``.
        volume: the scan.
        brain: finds brains, where the region is one.
        warn: is told of doubts.

    Returns:
        uint8 0/1 on the volume's grid.

    Raises:
        InputError: when it is not found.
    """
    if region == BRAIN:
        return brain(volume, warn)
    assert region == IMAGE
    return whole_image(volume)


def region_warnings(stack: SliceStack, values: np.ndarray, region: str) -> Iterator[str]:
    """What a region other than the brain says of a scan.

    Args:
        stack: its slices.
        values: raw intensities in the region.
        region: as for ``find_region``.
    """
    if values.size and values.min() == values.max():
        yield f"All of the {REGIONS[region]} has the value {values.flat[0]:g}; there is nothing to find in such a scan."
    if stack.grid.spacing is None and len(stack) > 1:
        yield f"The model looks at single pictures; each of the {len(stack)} slices was looked at as one."
    if stack.coverage < 0.99:
        yield (
            f"Only {stack.coverage:.0%} of the {REGIONS[region]} gets scores; the rest lies outside the model's field "
            "of view. Is the pixel spacing right?"
        )


def whole_image(volume: Volume) -> sitk.Image:
    """A mask of ones on a scan's grid."""
    mask = sitk.GetImageFromArray(np.ones(volume.image.GetSize()[::-1], np.uint8))
    mask.CopyInformation(volume.image)
    return mask
