"""The baseline: how much brighter than the most common brain tissue a pixel is.

It needs no network and a second a scan. On FLAIR it beats many published models (Meissen et al. 2021, "Challenging
Current Semi-Supervised Anomaly Segmentation Methods for Brain MRI"), so every evaluation prints it beside the others,
with the same brain mask. What makes it good is not here but in its package: the scale by the brain's mode, the fine
grid, and filters that leave small lesions alone.
"""

from __future__ import annotations

import torch

from ..models.networks import Model
from ..registry import IntensityOptions
from .base import ProgressCallback, SliceBatch, SliceResult, confine, residual


class Intensity:
    """Difference to the reference intensity inside the brain, on the bright side, the dark side or both."""

    def run(
        self, batch: SliceBatch, model: Model | None, options: IntensityOptions, progress: ProgressCallback
    ) -> SliceResult:
        """The anomaly score is the difference in normalised intensity."""
        images = batch.images.float()
        ordinary = torch.full_like(images, options.reference)
        anomaly_map = confine(residual(images, ordinary, options.side), batch.brain)
        progress(0)
        pixels = batch.brain.sum(dim=(1, 2, 3)).cpu().clamp_min(1)
        return SliceResult(anomaly_map, anomaly_map.sum(dim=(1, 2)) / pixels)

    def network_calls(self, options: IntensityOptions) -> int:
        return 0
