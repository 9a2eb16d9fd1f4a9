"""Reasons to doubt the intensities of a brain scan: cut off, uneven from slice to slice, drowned in noise; and a mask
larger than lesions are.

Limits were set by 35 FLAIR scans of five sources, with gliomas, multiple sclerosis, or healthy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import SimpleITK as sitk

from ..io.orientation import Orientation
from .head_size import LEAST_BRAIN_ML

# In a scan that is not cut off at most 2 brain voxels in 100,000 share the highest value.
SATURATED_SHARE = 0.002

# From slice to slice the brain's median changed by a factor of at most 1.1, in slices with at least this share of the
# largest one's brain; towards vertex and neck by up to 1.7.
MOST_JUMP, SLICE_SHARE = 1.4, 0.5

# Noise was 0.03 to 0.12 of the brain's median.
MOST_NOISE = 0.3
# The median of |x| of a normal variable, and the standard deviation of a second difference, both by that of the noise.
_MEDIAN_OF_NORMAL, _SECOND_DIFFERENCE = 0.6745, math.sqrt(6)

# Air is what the darkest of a scan is, but for a few odd voxels.
_AIR_PERCENTILE = 0.5

# The largest glioma filled 16 % of its brain, the largest mask 13 %. A slice or a slab may hold hardly anything else.
MOST_MARKED, MOST_MARKED_OF_PART = 0.25, 0.5


def intensity_warnings(image: sitk.Image, brain: sitk.Image, what: str = "scan") -> Iterator[str]:
    """What the intensities say.

    Args:
        image: the scan.
        brain: mask on its grid, not 0 inside.
        what: whom the sentence is about, such as "scan" or "channel T1".
    """
    orientation = Orientation.of(image)
    values = orientation.view(sitk.GetArrayViewFromImage(image))
    inside = orientation.view(sitk.GetArrayViewFromImage(brain)) != 0
    in_brain = values[inside]
    if in_brain.size == 0 or in_brain.min() == in_brain.max():
        return
    saturated = float(np.mean(in_brain == in_brain.max()))
    if saturated > SATURATED_SHARE:
        yield (
            f"{saturated:.1%} of the brain's voxels have the highest value in it, {in_brain.max():g}: the {what} is "
            "saturated, or was cut off there. Lesions that were brighter look like tissue and may be missed."
        )
    air = float(np.percentile(values, _AIR_PERCENTILE))
    jump = _largest_jump(values, inside, air)
    if jump > MOST_JUMP:
        much = f"{jump:.2g} times as bright" if math.isfinite(jump) else "empty"
        yield (
            f"The brain in one slice of the {what} is {much} beside the next: slices were scaled each for itself, or "
            "come from several scans. Bright slices may be marked whole, and lesions in dark ones be missed."
        )
    level = float(np.median(in_brain)) - air
    noise = noise_level(values, inside) / level if level > 0 else 0.0
    if noise > MOST_NOISE:
        yield (
            f"The noise in the {what}'s brain is {noise:.0%} of its median, in ordinary scans up to 12 %: noise may be "
            "marked, and lesions be missed."
        )


def _largest_jump(values: np.ndarray, inside: np.ndarray, air: float) -> float:
    """Between neighbouring slices, as the factor above 1 between the brain's medians; infinite for an empty slice."""
    areas = np.count_nonzero(inside, axis=(1, 2))
    large = areas >= SLICE_SHARE * areas.max()
    jump = 1.0
    before: float | None = None
    for plane, mask, usable in zip(values, inside, large, strict=True):
        median = max(float(np.median(plane[mask])) - air, 0.0) if usable else None
        if median is not None and before is not None:
            low, high = sorted((median, before))
            jump = max(jump, high / low if low > 0 else math.inf)
        before = median
    return jump


def noise_level(values: np.ndarray, inside: np.ndarray) -> float:
    """Standard deviation of the noise in a mask: by the median second difference in plane, which edges hardly move.

    After Immerkær 1996, "Fast noise variance estimation", along lines and with the median.

    Args:
        values: ``(slices, rows, columns)``, in any unit.
        inside: of the same shape.

    Returns:
        The larger of the estimates along rows and columns; 0 where the mask is thinner than three voxels.
    """
    levels = [0.0]
    for axis in (1, 2):
        first, middle, last = (np.moveaxis(inside, axis, 0)[start:end] for start, end in ((0, -2), (1, -1), (2, None)))
        whole = first & middle & last
        if whole.any():
            lines = np.moveaxis(values, axis, 0)
            bend = lines[:-2][whole] - 2.0 * lines[1:-1][whole] + lines[2:][whole]
            levels.append(float(np.median(np.abs(bend))) / _MEDIAN_OF_NORMAL / _SECOND_DIFFERENCE)
    return max(levels)


def marked_warning(mask: sitk.Image, brain: sitk.Image, lowered: bool = False) -> str | None:
    """The warning when more of the brain is marked than lesions fill.

    Args:
        mask: of the findings.
        brain: mask on its grid.
        lowered: whether the user set a threshold below the package's.
    """
    inside = sitk.GetArrayViewFromImage(brain) != 0
    voxels = int(np.count_nonzero(inside))
    share = np.count_nonzero(sitk.GetArrayViewFromImage(mask)[inside]) / max(1, voxels)
    ml = voxels * math.prod(brain.GetSpacing()) / 1000
    if share <= (MOST_MARKED if ml >= LEAST_BRAIN_ML else MOST_MARKED_OF_PART):
        return None
    return (
        f"{share:.0%} of the brain is marked, more than lesions usually fill: "
        + ("the threshold is too low, or " if lowered else "")
        + "the scan's contrast, scaling or noise may be what the model does not know."
    )
