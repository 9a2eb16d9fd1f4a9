"""What the scan adds to the plan: the grid its slices are looked at on, and the scale of its intensities."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from .intensity import IntensityScale
from .orientation import Orientation
from .planning import Plan, with_options
from .stack import Grid

if TYPE_CHECKING:
    from .volume import Volume

# The baseline without a package looks at the scan's own pixels, as long as a slice has no more of them than this.
LARGEST_NATIVE_SLICE = 512


def choose_grid(volume: Volume, brain: sitk.Image, plan: Plan) -> Grid:
    """The package's grid, or for the baseline without one the scan's own pixels around the brain."""
    grid = plan.bundle.grid if plan.bundle is not None else _native_grid(volume.image, brain)
    if plan.asked.slice_spacing is not None:
        grid = replace(grid, max_slice_spacing=float(plan.asked.slice_spacing))
    return grid


def _native_grid(image: sitk.Image, brain: sitk.Image) -> Grid:
    """A grid over the brain's bounding box with the finer of the two in-plane spacings, or the next that fits."""
    orientation = Orientation.of(image)
    _, row_mm, column_mm = orientation.spacing(image)
    inside = orientation.view(sitk.GetArrayViewFromImage(brain)).any(axis=0)
    extents = [np.ptp(hits) + 1 if (hits := np.flatnonzero(np.any(inside, axis=axis))).size else 1 for axis in (1, 0)]
    height_mm, width_mm = extents[0] * row_mm, extents[1] * column_mm
    spacing = max(min(row_mm, column_mm), max(height_mm, width_mm) / LARGEST_NATIVE_SLICE)
    # Two pixels more, because the box is centred to half a voxel.
    width, height = (int(np.ceil(length / spacing - 1e-6)) + 2 for length in (width_mm, height_mm))
    return Grid((width, height), float(spacing))


def fit_intensities(
    plan: Plan, image: sitk.Image, brain: sitk.Image, values: np.ndarray
) -> tuple[Plan, IntensityScale]:
    """The scan's scale, and the plan that knows it.

    The baseline gets the brain's whole range without a clip: a z-score does not care about the scale, but a clipped
    intensity would end the order of the brightest voxels, which are the ones that matter.
    """
    from .methods import IntensityOptions

    if plan.method.needs_model:
        assert plan.bundle is not None
        return plan, plan.bundle.normalisation.fit_scan(image, brain)
    low, high = float(values.min(initial=np.inf)), float(values.max(initial=-np.inf))
    scale = IntensityScale(low, high if high > low else low + max(1.0, abs(low)), 1.0, 1.0)
    options = plan.method_options
    if isinstance(options, IntensityOptions) and (options.center is None or options.scale is None):
        fitted = options.fitted(scale(values, np.asarray(True)))
        center = fitted.center if options.center is None else options.center
        deviation = fitted.scale if options.scale is None else options.scale
        plan = with_options(plan, replace(options, center=center, scale=deviation))
    return plan, scale
