"""What happens to raw heat between a method and its calibration, the same at calibration time and in use.

Single hot pixels are noise, lesions are not: a median filter in the slice removes the first and keeps the
second (the usual post-processing of brain anomaly benchmarks, Baur et al. 2021). Torch-free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from scipy import ndimage

from .errors import InputError

# Normalised intensity; an image without any texture, which a model may restore perfectly, must not become hot.
LEAST_MISFIT = 1e-3


@dataclass(frozen=True)
class PostprocessSettings:
    """Filters of raw heat, stored in the model package because its calibration holds for them only.

    Attributes:
        median_pixels: width of the in-plane median filter in pixels of the model's grid, odd; 1 switches it
            off.
        slice_sigma: Gaussian through the slices, in slices; 0 switches it off.
        rim_pixels: pixels taken off the brain's edge in each slice, where partial volume makes false heat.
        relative: how far heat is relative to the scan's own misfit: heat is divided by the misfit to this power. 0
            leaves heat as it is; with 1, a scan that the model restores twice as badly needs twice the difference.
    """

    median_pixels: int = 5
    slice_sigma: float = 0.0
    rim_pixels: int = 0
    relative: float = 0.0

    def __post_init__(self) -> None:
        _check("median_pixels", self.median_pixels, 1, 31, whole=True)
        _check("slice_sigma", self.slice_sigma, 0, 20, whole=False)
        _check("rim_pixels", self.rim_pixels, 0, 31, whole=True)
        _check("relative", self.relative, 0, 1, whole=False)
        if self.median_pixels % 2 == 0:
            raise InputError(f"Option median_pixels is {self.median_pixels}.", "It must be odd.")

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> PostprocessSettings:
        """From a package's ``postprocess`` object.

        Raises:
            InputError: for an unknown key or a value out of range.
        """
        known = [setting.name for setting in fields(cls)]
        unknown = sorted(set(settings) - set(known))
        if unknown:
            raise InputError(f"Unknown post-processing {', '.join(unknown)}.", f"Known are {', '.join(known)}.")
        return cls(**settings)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def postprocess(
    raw: np.ndarray,
    brain: np.ndarray,
    settings: PostprocessSettings | Mapping[str, Any] | None = None,
    misfit: float | None = None,
) -> np.ndarray:
    """Filter raw heat.

    Args:
        raw: ``(n, H, W)`` heat of a volume's slices in order, >= 0.
        brain: ``(n, H, W)`` bool.
        settings: what to apply; None for the defaults.
        misfit: how far the scan's brain commonly is from its healthy version, in the units of ``raw``; None for a
            method without a healthy version, whose heat is left as it is.

    Returns:
        ``(n, H, W)`` float32, >= 0, exactly 0 outside the brain.
    """
    if not isinstance(settings, PostprocessSettings):
        settings = PostprocessSettings.from_dict(settings or {})
    if raw.shape != brain.shape or raw.ndim != 3:
        raise InputError(f"Heat has shape {raw.shape} and brain {brain.shape}.", "Both must be (n, H, W).")
    brain = brain.astype(bool)
    heat = np.where(brain, raw, 0).astype(np.float32)
    if settings.median_pixels > 1:
        size = (1, settings.median_pixels, settings.median_pixels)
        heat = ndimage.median_filter(heat, size=size, mode="constant")
    if settings.slice_sigma > 0:
        heat = _smooth_through_slices(np.where(brain, heat, 0), brain, settings.slice_sigma)
    if settings.rim_pixels > 0:
        brain = _without_rim(brain, settings.rim_pixels)
    if settings.relative > 0 and misfit is not None:
        heat = heat / max(misfit, LEAST_MISFIT) ** settings.relative
    return np.where(brain, heat, 0).astype(np.float32)


def _smooth_through_slices(heat: np.ndarray, brain: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian along the first axis over brain voxels only: the background does not dim the brain's ends."""
    weight = ndimage.gaussian_filter1d(brain.astype(np.float32), sigma, axis=0, mode="constant")
    smoothed = ndimage.gaussian_filter1d(heat, sigma, axis=0, mode="constant")
    return np.where(brain, smoothed / np.maximum(weight, 1e-6), 0)


def _without_rim(brain: np.ndarray, pixels: int) -> np.ndarray:
    """Each slice eroded by a disc-like structure; the volume's ends are left alone."""
    in_plane = np.zeros((3, 3, 3), dtype=bool)
    in_plane[1] = ndimage.generate_binary_structure(2, 1)
    return ndimage.binary_erosion(brain, in_plane, iterations=pixels)


def _check(name: str, value: Any, low: float, high: float, *, whole: bool) -> None:
    is_number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        raise InputError(f"Option {name} is {value!r}.", f"It must be {kind} from {low:g} to {high:g}.")
