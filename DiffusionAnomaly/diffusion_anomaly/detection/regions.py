"""What of a scan is looked at: the brain, the head, the space inside the skull, or everything, as the package says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from ..models.declaration import BRAIN, IMAGE

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..io.volume import Volume
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


def whole_image(volume: Volume) -> sitk.Image:
    """A mask of ones on a scan's grid."""
    mask = sitk.GetImageFromArray(np.ones(volume.image.GetSize()[::-1], np.uint8))
    mask.CopyInformation(volume.image)
    return mask
