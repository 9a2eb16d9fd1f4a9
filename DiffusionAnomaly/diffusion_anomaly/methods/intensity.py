"""The baseline: how many robust standard deviations a voxel's intensity lies from the brain's median.

It costs nothing, and on FLAIR it beats many published models (Meissen et al. 2021), so every evaluation
prints it beside the diffusion methods.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..networks import Model
from .base import (
    SIDES,
    ProgressCallback,
    SliceBatch,
    SliceResult,
    confine,
)
from .options import MethodOptions, choice, number

# A normal distribution's standard deviation is this many times its median, or its mean, absolute deviation.
_MEDIAN_DEVIATION_TO_STD = 1.4826
_MEAN_DEVIATION_TO_STD = 1.2533


@dataclass(frozen=True)
class IntensityOptions(MethodOptions):
    """Options of the baseline.

    ``center`` and ``scale`` are the volume's (see ``fitted``); without them each batch finds its own.
    """

    side: str = choice("bright", SIDES, "which intensities are suspicious: lesions are bright on FLAIR")
    center: float | None = number(None, -1e6, 1e6, "median intensity of the volume's brain")
    scale: float | None = number(None, 1e-9, 1e6, "robust standard deviation of the volume's brain")

    def fitted(self, values_in_brain: np.ndarray) -> IntensityOptions:
        """The same options with ``center`` and ``scale`` from all of a volume's brain intensities."""
        center, scale = robust_center_scale(values_in_brain)
        return replace(self, center=center, scale=scale)


def robust_center_scale(values: np.ndarray) -> tuple[float, float]:
    """Median and robust standard deviation (scaled median absolute deviation) of finite values.

    Where more than half of the values are equal the median deviation is 0 and the mean deviation takes its
    place; of a constant image the scale is 1, so that every z-score is 0.
    """
    if values.size == 0:
        return 0.0, 1.0
    center = float(np.median(values))
    deviation = np.abs(values.astype(np.float64) - center)
    scale = _MEDIAN_DEVIATION_TO_STD * float(np.median(deviation))
    if scale == 0:
        scale = _MEAN_DEVIATION_TO_STD * float(deviation.mean())
    return center, max(scale, 1e-9) if scale else 1.0


class Intensity:
    """Robust z-score of intensity inside the brain, on the bright side, the dark side or both."""

    name = "intensity"
    title = "Intensity (baseline)"
    needs_model = False
    score_title = "mean z-score of the brain"
    score_is_familiarity = False
    options_type = IntensityOptions

    def run(
        self, batch: SliceBatch, model: Model | None, options: IntensityOptions, progress: ProgressCallback
    ) -> SliceResult:
        center, scale = options.center, options.scale
        if center is None or scale is None:
            found = robust_center_scale(batch.images[batch.brain].cpu().numpy())
            center, scale = found[0] if center is None else center, found[1] if scale is None else scale
        z = (batch.images[:, 0].float() - center) / scale
        heat = {"bright": z.clamp_min(0.0), "dark": (-z).clamp_min(0.0), "both": z.abs()}[options.side]
        heat = confine(heat, batch.brain)
        progress(0)
        voxels = batch.brain.sum(dim=(1, 2, 3)).cpu().clamp_min(1)
        return SliceResult(heat, heat.sum(dim=(1, 2)) / voxels)

    def network_calls(self, options: IntensityOptions) -> int:
        return 0
