"""What happens to raw anomaly scores between a method and its calibration, the same at calibration time and in use.

Single high pixels are noise, lesions are not: a median filter in the slice removes the first and keeps the
second (the usual post-processing of brain anomaly benchmarks, Baur et al. 2021). How large a lesion is does not depend
on the scan's grid, so filters are best stated in mm; and slices may lie 8 mm apart, where a filter counted in slices
smears a finding over 2 cm. Torch-free.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import ndimage

from ..errors import InputError
from ..models.filters import PostprocessSettings

# Normalised intensity; an image without any texture, which a model may restore perfectly, must not score high.
LEAST_ERROR = 1e-3


def postprocess(
    raw: np.ndarray,
    brain: np.ndarray,
    settings: PostprocessSettings | Mapping[str, Any] | None = None,
    reconstruction_error: float | None = None,
    *,
    pixel_spacing: float,
    slice_spacing: float,
) -> np.ndarray:
    """Filter raw anomaly scores.

    Args:
        raw: ``(n, H, W)`` anomaly scores of a volume's slices in order, >= 0.
        brain: ``(n, H, W)`` bool.
        settings: what to apply; None for the defaults.
        reconstruction_error: how far the scan's brain commonly is from its pseudo-healthy reconstruction, in the units
            of ``raw``; None for a method without a pseudo-healthy reconstruction, whose scores are left as it is.
        pixel_spacing: pixel edge in mm, the same along both axes.
        slice_spacing: distance between slices in mm.

    Returns:
        ``(n, H, W)`` float32, >= 0, exactly 0 outside the brain.
    """
    if not isinstance(settings, PostprocessSettings):
        settings = PostprocessSettings.from_dict(settings or {})
    if raw.shape != brain.shape or raw.ndim != 3:
        raise InputError(f"Anomaly scores have shape {raw.shape} and brain {brain.shape}.", "Both must be (n, H, W).")
    brain = brain.astype(bool)
    filters = settings.on_grid(pixel_spacing, slice_spacing)
    anomaly_map = np.where(brain, raw, 0).astype(np.float32)
    if filters.median_pixels > 1:
        size = (1, filters.median_pixels, filters.median_pixels)
        anomaly_map = ndimage.median_filter(anomaly_map, size=size, mode="constant")
    if filters.slice_sigma > 0:
        anomaly_map = _smooth_through_slices(np.where(brain, anomaly_map, 0), brain, filters.slice_sigma)
    if filters.edge_erosion_pixels > 0:
        brain = _without_rim(brain, filters.edge_erosion_pixels)
    if settings.error_normalisation_power > 0 and reconstruction_error is not None:
        anomaly_map = anomaly_map / max(reconstruction_error, LEAST_ERROR) ** settings.error_normalisation_power
    return np.where(brain, anomaly_map, 0).astype(np.float32)


def _smooth_through_slices(anomaly_map: np.ndarray, brain: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian along the first axis over brain voxels only: the background does not dim the brain's ends."""
    weight = ndimage.gaussian_filter1d(brain.astype(np.float32), sigma, axis=0, mode="constant")
    smoothed = ndimage.gaussian_filter1d(anomaly_map, sigma, axis=0, mode="constant")
    return np.where(brain, smoothed / np.maximum(weight, 1e-6), 0)


def _without_rim(brain: np.ndarray, pixels: int) -> np.ndarray:
    """Each slice eroded by a disc-like structure; the volume's ends are left alone."""
    in_plane = np.zeros((3, 3, 3), dtype=bool)
    in_plane[1] = ndimage.generate_binary_structure(2, 1)
    return ndimage.binary_erosion(brain, in_plane, iterations=pixels)
