"""From scanner units to what a network reads. One function, called by training and by detection alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from .errors import InputError

# Medians and percentiles of this many brain voxels, evenly spread, stand for all of them.
ENOUGH_VOXELS = 4_000_000


def values_in_brain(image: sitk.Image, brain: sitk.Image) -> np.ndarray:
    """Intensities inside the brain, float32 ``(K,)``; an even sample of them where there are very many.

    Args:
        image: the scan.
        brain: mask on its grid, not 0 inside.
    """
    inside = sitk.GetArrayViewFromImage(brain) != 0
    values = sitk.GetArrayViewFromImage(image)[inside]
    return values[:: max(1, len(values) // ENOUGH_VOXELS)]


@dataclass(frozen=True)
class Normalisation:
    """The rule a model was trained with, kept in its bundle.

    Robust percentiles inside the brain carry a scan's arbitrary units to [0, clip_max]: the low percentile
    becomes 0, the high percentile becomes `high_value`. With a high percentile of 75 at 0.5 a lesion up to
    twice as bright as most of the brain still lies below the clip, and a large lesion hardly moves the scale.

    >>> scale = Normalisation().fit(np.linspace(0, 100, 1001))
    >>> scale.low, scale.high
    (5.0, 75.0)
    """

    low_percentile: float = 5.0
    high_percentile: float = 75.0
    high_value: float = 0.5
    clip_max: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.low_percentile < self.high_percentile <= 100:
            raise InputError(
                f"Normalisation percentiles are {self.low_percentile} and {self.high_percentile}; "
                "expected 0 <= low < high <= 100."
            )
        if not 0 < self.high_value <= self.clip_max:
            raise InputError(
                f"Normalisation maps to {self.high_value} and clips at {self.clip_max}; "
                "expected 0 < high_value <= clip_max."
            )

    def fit(self, values_in_brain: np.ndarray) -> IntensityScale:
        """Scale of one scan.

        Args:
            values_in_brain: Raw intensities of the whole scan's brain, any shape.

        Raises:
            InputError: when there is no value.
        """
        values = np.asarray(values_in_brain).ravel()
        if values.size == 0:
            raise InputError(
                "There is no voxel inside the brain mask to take the intensity scale from.",
                "Give a brain mask that covers the brain.",
            )
        low, high = (float(v) for v in np.percentile(values, (self.low_percentile, self.high_percentile)))
        if not high > low:
            # Few distinct values (a label map, a nearly constant scan): take the full range instead. A
            # constant brain gets a width of one unit, so that it becomes 0 throughout and nothing divides by
            # zero.
            low, high = float(values.min()), float(values.max())
            high = high if high > low else low + max(1.0, abs(low))
        return IntensityScale(low, high, self.high_value, self.clip_max)


@dataclass(frozen=True)
class IntensityScale:
    """One scan's map from raw intensity to [0, clip_max]; `low` becomes 0 and `high` becomes `high_value`."""

    low: float
    high: float
    high_value: float
    clip_max: float

    def __call__(self, images: np.ndarray, brain: np.ndarray) -> np.ndarray:
        """Normalised images.

        Args:
            images: Raw intensities, (N, H, W).
            brain: Whether a pixel is brain, same shape.

        Returns:
            float32 in [0, clip_max], same shape, exactly 0 outside the brain.
        """
        scaled = (np.asarray(images, dtype=np.float64) - self.low) * (self.high_value / (self.high - self.low))
        return np.where(brain, np.clip(scaled, 0.0, self.clip_max), 0.0).astype(np.float32)

    def inverse(self, normalised: np.ndarray) -> np.ndarray:
        """Normalised images back to the scan's own units, float32; what was clipped stays clipped."""
        raw = np.asarray(normalised, dtype=np.float64) * ((self.high - self.low) / self.high_value) + self.low
        return raw.astype(np.float32)
