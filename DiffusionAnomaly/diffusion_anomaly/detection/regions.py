"""What of a scan is looked at: the brain, the head, the space inside the skull, or everything, as the package says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ..errors import InputError
from ..io.orientation import Orientation
from ..io.volume import binary
from ..models.declaration import BRAIN, HEAD, INTRACRANIAL, REGIONS
from ..preprocessing.intensity import WindowNormalisation
from .brain import largest_piece
from .skull import intracranial_space

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..io.volume import Volume
    from ..preprocessing.intensity import IntensityScale, Normalisation
    from ..preprocessing.slices import SliceStack
    from .brain import BrainFinder


# Otsu's threshold parts bright tissue from dark, such as skull in an MR; tissue begins at this share of it above air.
TISSUE_SHARE = 0.4

# Of the space inside a skull: less is a part of it. The median of tissue was 35 to 41 in 57 patients.
LEAST_ML, TISSUE_HU = 600.0, (25.0, 50.0)


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
    if region == INTRACRANIAL:
        return intracranial_space(volume.image, volume.name)
    if region == HEAD:
        return head(volume)
    return whole_image(volume)


def head(volume: Volume) -> sitk.Image:
    """The head, or what else is in the picture: the largest piece that is brighter than air, with all that it encloses.

    Raises:
        InputError: when all is of one value.
    """
    values = sitk.GetArrayViewFromImage(volume.image)
    low, high = (float(value) for value in np.percentile(values[..., :: max(1, values.size // 4_000_000)], (0.5, 99.5)))
    if not low < high:
        raise InputError(f"No head was found in {volume.name}: it has one value alone.", "Choose another scan.")
    otsu = sitk.OtsuThresholdImageFilter()
    otsu.Execute(sitk.Clamp(volume.image, lowerBound=low, upperBound=high))
    bright = volume.image > low + TISSUE_SHARE * (otsu.GetThreshold() - low)
    inside = largest_piece(sitk.GetArrayViewFromImage(sitk.BinaryMorphologicalClosing(bright, [2, 2, 1])) != 0)
    # Slices at the ends of a scan leave airways and sinuses open to the outside.
    axis = 2 - Orientation.of(volume.image).axes[0]
    filled = np.stack([np.asarray(ndimage.binary_fill_holes(plane)) for plane in np.moveaxis(inside, axis, 0)], axis)
    return binary(filled.astype(np.float32), volume)


def region_warnings(
    stack: SliceStack, values: np.ndarray, region: str, rule: Normalisation, scale: IntensityScale
) -> Iterator[str]:
    """What a region other than the brain says of a scan.

    Args:
        stack: its slices.
        values: raw intensities in the region.
        region: as for ``find_region``.
        rule: the model's scale.
        scale: the scan's.
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
    if region == INTRACRANIAL:
        yield from _intracranial_warnings(stack, values, rule, scale)


def _intracranial_warnings(
    stack: SliceStack, values: np.ndarray, rule: Normalisation, scale: IntensityScale
) -> Iterator[str]:
    """What size and brightness of the space inside a skull say."""
    ml = float(np.count_nonzero(stack.brain())) * stack.voxel_ml
    if ml < LEAST_ML and len(stack) > 1:
        yield (
            f"The space inside the skull holds only {ml:.0f} ml in this scan; an adult's has 1000 to 2100 ml. What is "
            "left out gets no scores. Look at it, or give one with --mask (brain= in Python)."
        )
    if values.size and isinstance(rule, WindowNormalisation):
        share = (float(np.median(values)) - scale.low) / (scale.high - scale.low)
        tissue = rule.low + share * (rule.high - rule.low)
        if not TISSUE_HU[0] <= tissue <= TISSUE_HU[1]:
            yield (
                f"Ordinary tissue inside the skull is as bright as {tissue:.0f} Hounsfield units; it has about 35. Is "
                "the CT in another window, such as bone's, or was contrast agent given? Scores mean little then."
            )


def whole_image(volume: Volume) -> sitk.Image:
    """A mask of ones on a scan's grid."""
    mask = sitk.GetImageFromArray(np.ones(volume.image.GetSize()[::-1], np.uint8))
    mask.CopyInformation(volume.image)
    return mask
